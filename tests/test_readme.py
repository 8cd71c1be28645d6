"""The Chinese README has the commands, numbers, names and links of the English one."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LANGUAGE_LINKS = {"README.md", "README.zh-CN.md"}


def read(name):
    """Return the lines of code without comments, and the text around them with names in code on one line."""
    code, text, in_fence = [], [], False
    for line in (ROOT / name).read_text("utf-8").splitlines():
        if line.startswith("```"):
            in_fence = not in_fence
        elif in_fence or line.startswith("    "):
            code.append(re.sub(r"\s+#.*", "", line.rstrip()))
        else:
            text.append(line)
    return [line for line in code if line], " ".join(text)


def links(text):
    return set(re.findall(r"\]\(([^)]+)\)", text)) - LANGUAGE_LINKS


def names(text):
    return {re.sub(r"\s+", " ", name) for name in re.findall(r"`([^`]+)`", text)}


def numbers(text):
    text = re.sub(r"\]\([^)]+\)", "]", text)
    return Counter(re.findall(r"\d[\d,.]*\d|\d", text))


@pytest.mark.parametrize("part", [links, names, numbers])
def test_the_text_has_the_same(part):
    (_, english), (_, chinese) = read("README.md"), read("README.zh-CN.md")
    assert part(english)
    assert part(chinese) == part(english)


def test_the_commands_are_the_same():
    assert read("README.zh-CN.md")[0] == read("README.md")[0]


def test_every_link_leads_to_a_file():
    for name in ("README.md", "README.zh-CN.md"):
        assert all((ROOT / link).exists() for link in links(read(name)[1]) if "://" not in link)


def test_the_landing_page_of_the_docs_leads_to_every_page():
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"}
    targets = links(read("docs/index.md")[1])
    assert pages <= targets
    assert all((ROOT / "docs" / target).exists() for target in targets)
