"""Real models: load one, put a scaling on it, take it off again. Needs torch and transformers."""
