"""What making the artifact took."""
