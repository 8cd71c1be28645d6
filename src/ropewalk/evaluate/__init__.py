"""Evaluation of models on long text.

Perplexity against length: curve (`perplexity_curve`, `CurveRun`), perplexity (the loss of each token), curve_store.
LongPPL: key_tokens, evaluator, key_token_store. Cost on short text: short_tax, paired.
Plans by measurement: measured_plan (`measure_plan`), plan_measurements.
Tasks with answers: evaluation (`run_evaluation`), grid, worker, text_generator, executors, evaluation_store, tasks.
"""
