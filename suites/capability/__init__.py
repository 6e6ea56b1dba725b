"""What changed from the release or build before, cell by cell."""
