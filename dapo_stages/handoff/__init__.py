"""What stages hand to each other: schemas, shards, manifests, and outputs that are published whole or not at all."""
