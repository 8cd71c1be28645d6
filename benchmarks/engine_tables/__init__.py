"""Which rotary fields each architecture of a serving engine reads, taken from the source code of the engine.

Compare the committed tables with the newest packages (pip downloads them, about 200 MB), or write them again:

    python -m benchmarks.engine_tables
    python -m benchmarks.engine_tables --engine mlx-lm --write
    python -m benchmarks.engine_tables --engine vllm --version 0.31.0
    python -m benchmarks.engine_tables --engine vllm --version 0.31.0 --source FOLDER    # unpacked, without pip

The exit status is 1 if a table differs.

One file for each engine has a function `read_table(folder)` that parses the package's Python files (nothing of the
engine is imported or run). The tables are stored in src/ropewalk/serving/engines/tables/, where the interpretations of
the engines consult them; `tables/__init__.py` documents the columns.
"""
