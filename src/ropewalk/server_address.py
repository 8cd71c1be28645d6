"""How a user names a server: a URL without credentials, and the name of the environment variable that holds a key.

A URL is stored with results and printed; a key never is.
"""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

from ropewalk.errors import InputError

_CREDENTIALS = re.compile(r"(\w://)\S*@")  # up to the last @: a password may contain / and @
_PRINTABLE_ASCII = re.compile(r"[!-~]+")  # what an HTTP header can carry without quoting


def remove_credentials(text: str) -> str:
    """Return the text without the user name and password of every URL in it."""
    return _CREDENTIALS.sub(r"\1", text)


def check_server_url(field: str, url: str) -> str:
    """Return the base URL of a server without the slash at its end.

    Raises InputError for a URL that is malformed, or that contains a user name, a password or a query, since a URL is
    stored and printed. The message does not repeat these.
    """
    shown = remove_credentials(url).partition("?")[0]
    if shown != url or "@" in shown:
        found = f"{'a URL' if '@' in shown else shown} with a user name, a password or a query"
        hint = "put a key into an environment variable, and name the variable with --api-key-env"
        raise InputError(field, found, "a URL without them", hint)
    try:
        parts = urlsplit(url)
        is_valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and not parts.fragment
    except ValueError:  # of a port or an IPv6 address
        is_valid = False
    if not is_valid:
        raise InputError(field, url, "a URL such as http://127.0.0.1:8000/v1")
    return url.rstrip("/")


def read_api_key(variable: str) -> str | None:
    """Return the key in an environment variable; None if `variable` is empty.

    Raises InputError if the variable is not set or does not hold a key. The message repeats neither its name, which
    could be the key itself by mistake, nor its value.
    """
    if not variable:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise InputError("api_key_env", "a name that is not set", "the name of an environment variable with the key")
    if not _PRINTABLE_ASCII.fullmatch(key):
        raise InputError("api_key_env", "a value with spaces or non-ASCII characters", "a variable that holds a key")
    return key
