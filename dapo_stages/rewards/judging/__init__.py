"""Rewards by a judge model on a server."""
