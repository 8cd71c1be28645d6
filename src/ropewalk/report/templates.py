"""Templates of HTML pages. Every value is escaped, and invisible characters are shown as their escapes."""

from __future__ import annotations

from importlib import resources
from typing import Any

from ropewalk.errors import MissingPackageError

# Invisible characters that change how a text looks: control characters but tab and newline, and the marks that set the
# direction of writing.
_INVISIBLE = {*range(0x20), 0x7F, *range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)} - {*b"\t\n"}
_ESCAPES = {code: chr(code).encode("unicode_escape").decode() for code in _INVISIBLE}


def load_template(package: str, name: str, feature: str, **filters: Any) -> Any:
    """Return a jinja2 template.

    Args:
        package, name: the file, in a package.
        feature: what needs the template, for the error message.
        filters: functions that the template applies as `value|filter`.

    Raises MissingPackageError if jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError:
        raise MissingPackageError(feature, "jinja2", "pip install 'ropewalk[plot]'") from None

    # autoescape is set explicitly, since a model's answers are untrusted text and the template's name ends in .j2
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.lstrip_blocks = True
    environment.finalize = escape_invisible
    environment.filters.update(filters)
    return environment.from_string(resources.files(package).joinpath(name).read_text("utf-8"))


def escape_invisible(value: Any) -> Any:
    """Return a string with its invisible characters as `\\x00` or `\\u202e`; any other value as it is."""
    # Markup, a subclass of str, has been through here before.
    return value.translate(_ESCAPES) if type(value) is str else value
