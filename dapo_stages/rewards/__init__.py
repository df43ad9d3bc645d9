"""Rewards of a single completion: accuracy, format, overlong and plug-ins."""
