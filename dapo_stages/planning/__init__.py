"""Estimates what a run needs before it starts: memory, time, traffic between ranks."""
