"""The demo data: colored shapes and scenes, drawn here."""
