"""Everything that holds or runs a model. Nothing here knows files of a run or the command line."""
