"""Data that ships: the catalog of models and the evaluation text. No code lives here."""
