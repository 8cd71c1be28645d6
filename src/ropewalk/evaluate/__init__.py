"""Evaluation of models on long text.

Perplexity against length: curve (`perplexity_curve`, `CurveRun`), perplexity (the loss of each token), curve_store.
Tasks with answers: evaluation (`run_evaluation`), grid, worker, text_generator, executors, evaluation_store, tasks.
"""
