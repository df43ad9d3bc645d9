"""The terminal: what is said, asked for and printed."""
