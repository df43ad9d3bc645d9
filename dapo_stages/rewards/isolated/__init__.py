"""Rewards by other people's code, each in a process of its own."""
