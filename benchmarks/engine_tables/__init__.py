"""Which rotary fields each architecture of a serving engine reads, taken from the source code of the engine.

    python -m benchmarks.engine_tables                        # compare the committed tables with the packages
    python -m benchmarks.engine_tables --engine mlx-lm --write
    python -m benchmarks.engine_tables --engine vllm --source FOLDER

One file for each engine has a function `read_table(folder)` that parses the package's Python files (nothing of the
engine is imported or run). The tables are stored in src/ropewalk/serving/engines/tables/, where the interpretations of
the engines consult them; `tables/__init__.py` documents the columns.
"""
