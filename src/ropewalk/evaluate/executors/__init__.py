"""Crews: who does the cells of a run. In this process, in several, or on a Ray cluster; one file each.

A crew is a function of the jobs and of what is done so far, and gives every outcome and summary as it comes, with the
key of its cell. Whatever the crew, one process writes: the one that reads this.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence

from ropewalk.evaluate.grid import Cell
from ropewalk.evaluate.sample import SampleResult
from ropewalk.evaluate.worker import CellSummary

Job = tuple[str, Cell]
News = tuple[str, SampleResult | CellSummary]
Done = Callable[[str], Mapping[int, SampleResult]]
Executor = Callable[[Sequence[Job], Done], Generator[News, None, None]]  # closed early, it leaves no worker behind

TRIES = 3  # for a cell whose worker was lost: more often, and the cell itself is at fault
