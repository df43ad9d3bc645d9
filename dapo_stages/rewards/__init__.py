"""Rewards of a single completion: accuracy, format, overlong, plug-ins and a judge."""
