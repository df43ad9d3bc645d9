"""A group is a prompt and its completions: the prompt is computed once."""
