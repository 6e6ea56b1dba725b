"""What the artifact writes: the same greedy text as when a person last accepted it."""
