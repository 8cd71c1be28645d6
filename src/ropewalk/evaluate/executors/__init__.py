"""Executors: how the cells of an evaluation are computed. One file each: in_process, processes, ray.

An executor is a function of the cells to compute. It yields the results of their samples and their summaries as they
become known, in any order, each with the key of its cell. It never writes: the process that reads from it stores them.
To add an executor, write a function that returns one; for several workers, implement `WorkerHandle` (dispatch.py).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence

from ropewalk.evaluate.grid import Cell
from ropewalk.evaluate.sample import SampleResult
from ropewalk.evaluate.worker import CellSummary

KeyedCell = tuple[str, Cell]  # the key of a cell, and the cell
KeyedResult = tuple[str, SampleResult | CellSummary]
# Returns the finished samples of a cell by index, given the key of the cell. Called when the cell is started.
LoadFinished = Callable[[str], Mapping[int, SampleResult]]
# Closing the generator early must end all workers.
Executor = Callable[[Sequence[KeyedCell], LoadFinished], Generator[KeyedResult, None, None]]

# A cell is given up when its worker was lost this many times in a row without finishing a sample: the cell itself is
# then the likely cause.
MAX_ATTEMPTS = 3
