"""Groups of a prompt and its completions, for which the prompt is computed once."""
