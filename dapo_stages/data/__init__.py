"""Datasets in, prompts out: sources, images, conversations, and the embedded tasks."""
