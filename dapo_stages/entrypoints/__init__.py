"""How the program starts: the command line, a launch of several processes, or a fork of a preloaded parent."""
