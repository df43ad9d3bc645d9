"""Other processes and machines: ranks of a launch, children that run code of others, servers."""
