"""Properties of any accounting of bits per weight: ours, or the one a user names."""
