"""One module per command: read shards, call maths or a model, write shards."""
