"""Benchmarks: each figure is a ratio measured in one run. `make bench`, or `python -m benchmarks` inside tests/."""
