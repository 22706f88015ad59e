"""The configuration language of all commands: YAML files and dotted options, checked against the types of the code.

``origins`` reads files and options and knows where a key was set, ``signatures`` reads the parameters of a class,
``values`` compares a value with a type, ``keys`` checks every key and value, and ``settings`` makes frozen dataclasses
for ``prepare`` and ``evaluate``; ``fit`` has LightningCLI.
"""

from __future__ import annotations

__all__ = ["keys", "origins", "settings", "signatures", "suggestions", "values"]
