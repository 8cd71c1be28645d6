"""The progress bars of long commands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ropewalk.cli.output import err_console


@contextmanager
def token_progress(total: int, label: str) -> Iterator[Callable[..., None]]:
    """Show a progress bar with speed and remaining time on standard error, if that is a terminal.

    Args:
        total: tokens to read; without any, nothing is shown.
        label: text to the left of the bar.

    Yields `update(tokens=0, label=None, detail=None)`, which adds tokens and replaces the text to the left and right of
    the bar.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),  # it may contain a path, or brackets of a list
        BarColumn(),
        TextColumn("{task.percentage:.0f}%"),
        TextColumn("{task.fields[speed]:,.0f} tokens/s"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
    )
    with Progress(*columns, console=err_console, disable=total == 0 or not err_console.is_terminal) as progress:
        task = progress.add_task(label, total=total, speed=0.0, detail="")

        def update(tokens: float = 0, label: str | None = None, detail: str | None = None) -> None:
            fields: dict[str, Any] = {"speed": progress.tasks[task].speed or 0.0}
            if detail is not None:
                fields["detail"] = detail
            progress.update(task, advance=tokens, description=label, **fields)

        yield update


@contextmanager
def share_progress(label: str) -> Iterator[Callable[[float, str], None]]:
    """Show a progress bar with the remaining time on standard error, if that is a terminal; else a line for each tenth.

    Yields `update(share, detail)`, which sets the share of the work that is done, from 0 to 1, and the text beside it.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:.0f}%"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
    )
    printed = 0.0
    with Progress(*columns, console=err_console, disable=not err_console.is_terminal) as progress:
        task = progress.add_task(label, total=1.0, detail="")

        def update(share: float, detail: str) -> None:
            nonlocal printed
            progress.update(task, completed=share, detail=detail)
            if not err_console.is_terminal and share >= printed + 0.1:
                printed = share
                err_console.print(f"{label}: {share:.0%} {detail}", markup=False)

        yield update
