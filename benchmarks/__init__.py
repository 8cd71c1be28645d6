"""Benchmarks of ropewalk, one module per question.

Run one from the root of the repository with `python -m benchmarks.NAME`.
"""
