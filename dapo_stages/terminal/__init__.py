"""Terminal output, and options shared by commands."""
