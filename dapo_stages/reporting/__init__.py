"""Reports for people: figures of each iteration as tables, curves and images, and for trackers."""
