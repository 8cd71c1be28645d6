"""Learn or search a scaling for a model whose weights stay as they are."""
