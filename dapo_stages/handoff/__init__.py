"""What stages hand to each other: schemas, shards, manifests, and outputs that are published only when complete."""
