"""The crew of one: this process."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from ropewalk.evaluate.executors import Done, Executor, Job, News
from ropewalk.evaluate.worker import Worker


def in_process_executor(worker: Worker) -> Executor:
    """One cell after the other, here."""

    def work(jobs: Sequence[Job], done: Done) -> Generator[News, None, None]:
        for key, cell in jobs:
            for news in worker.run(cell, done(key)):
                yield key, news

    return work
