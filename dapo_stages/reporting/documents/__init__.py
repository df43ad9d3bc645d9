"""Documents about runs, in Markdown."""
