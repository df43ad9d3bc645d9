"""Data sets in, prompts out: sources, pictures, conversations, and the embedded task."""
