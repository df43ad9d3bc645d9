"""How the program starts: the command line, a launch of several processes, a child of a parent that has all loaded."""
