"""The report of an iteration: figures, samples, images."""
