"""Values only: frozen, typed, without input or output."""
