"""The demo data: coloured shapes and scenes, drawn here."""
