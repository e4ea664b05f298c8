"""How a search goes, whatever trains the model."""
