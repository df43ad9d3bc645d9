"""Everything that holds or runs a model. Nothing here knows about a run's files or the command line."""
