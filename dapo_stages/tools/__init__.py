"""The commands around the stages."""
