"""Data that ships: the catalog, a small model, texts and questions. No code lives here."""
