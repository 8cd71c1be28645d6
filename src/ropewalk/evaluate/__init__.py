"""What a model does with long text: texts, perplexity against length, and the files of a run."""
