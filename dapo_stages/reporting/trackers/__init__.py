"""What trackers are sent: W&B and TensorBoard."""
