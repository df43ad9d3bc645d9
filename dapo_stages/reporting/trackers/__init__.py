"""The trackers: W&B and TensorBoard."""
