"""How numbers and long names are written in tables, pictures and the page."""

from __future__ import annotations


def format_number(value: float) -> str:
    """Return a score that is not a share, such as a perplexity: two decimals, four digits from 100 on, or 1.2e+06."""
    if value < 100:
        return f"{value:.2f}"
    return f"{float(f'{value:.4g}'):,g}" if value < 1e6 else f"{value:.1e}"


def format_score(value: float, is_share: bool) -> str:
    """Return a score as a string: a share of 1 in percent but without the sign, which the heading has."""
    return f"{100 * value:.1f}" if is_share else format_number(value)


def shorten_middle(text: str, max_characters: int) -> str:
    """Return the text with its middle replaced by an ellipsis if it is longer than `max_characters`."""
    head = (max_characters - 1) * 2 // 3
    tail = max_characters - 1 - head
    return text if len(text) <= max_characters else f"{text[:head]}…{text[len(text) - tail :]}"
