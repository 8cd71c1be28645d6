"""transformers 4, whose last version is a package of its own for the engines that were written for it."""

from __future__ import annotations

from benchmarks.engine_tables.transformers import SOURCE, read_table

__all__ = ["PACKAGE", "SOURCE", "read_table"]

PACKAGE = "transformers<5"
