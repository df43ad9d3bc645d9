"""Groups of completions and what is counted about them; no models."""
