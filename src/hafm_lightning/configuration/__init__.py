"""The configuration language of all commands: YAML files and dotted options, checked against the types of the code.

:mod:`~hafm_lightning.configuration.keys` checks every key and value with its place, :mod:`signatures` reads what a class
takes, :mod:`values` compares a value with a type, :mod:`origins` knows where a key was set, :mod:`yaml_keys` reads YAML
with line numbers, and :mod:`settings` makes frozen dataclasses (``prepare``, ``evaluate``; ``fit`` has LightningCLI).
"""
