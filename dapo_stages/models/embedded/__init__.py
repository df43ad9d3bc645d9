"""The demo model, small enough for a laptop: the real architecture, built and pretrained here."""
