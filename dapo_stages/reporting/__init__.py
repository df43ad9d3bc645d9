"""What people look at: figures of each iteration as tables, curves, pictures and trackers' points."""
