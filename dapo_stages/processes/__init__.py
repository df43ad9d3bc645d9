"""Other processes and machines: the ranks of a launch, child processes for other people's code, servers."""
