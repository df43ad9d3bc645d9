"""Reward functions that are not ours, each in a process of its own."""
