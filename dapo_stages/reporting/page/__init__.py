"""The page: HTML and its charts."""
