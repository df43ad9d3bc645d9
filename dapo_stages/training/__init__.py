"""The update of a policy."""
