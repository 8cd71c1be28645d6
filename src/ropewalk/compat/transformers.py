"""transformers, asked to keep its log to itself for a while."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_transformers(level: int) -> Iterator[None]:
    """Inside, transformers logs from `level` (of logging) on."""
    logger = logging.getLogger("transformers")
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
