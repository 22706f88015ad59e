"""Judges that answer trials in place of listeners: audio chat models, coherence metrics, the stages themselves."""
