"""The configuration language of all commands: YAML files and dotted options, checked against the types of the code.

``keys`` checks every key and value and names its place, ``signatures`` reads what a class takes, ``values`` compares a
value with a type, ``origins`` reads YAML with line numbers and knows where a key was set, and ``settings``
makes frozen dataclasses for ``prepare`` and ``evaluate``; ``fit`` has LightningCLI.
"""
