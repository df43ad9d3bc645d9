"""The demo model, small enough for a laptop: real architecture, made here."""
