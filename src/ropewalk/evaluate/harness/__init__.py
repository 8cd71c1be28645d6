"""ropewalk as a model of lm-evaluation-harness: `lm_eval --model ropewalk`, run by `python -m` on this package."""
