"""The progress bar of commands that read many tokens."""

import io

from rich.console import Console

from ropewalk.cli import progress


def test_labels_are_printed_as_text(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(progress, "err_console", Console(file=terminal, force_terminal=True, width=200))
    with progress.token_progress(100, "m[/b]") as update:
        update(50, label="x[red]b", detail="longrope:short_factor=[1,2]")
    shown = terminal.getvalue()
    assert "x[red]b" in shown
    assert "short_factor=[1,2]" in shown
