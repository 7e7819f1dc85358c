"""Asking an HTTP address whether it is there and what it says, with nothing but the standard library."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from typing import Any

POLL_S = 0.2


def http_status(url: str, timeout_s: float = 3.0) -> int | None:
    """Status code of a GET request; None when nothing answers."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, ValueError):
        return None


def get_json(url: str, timeout_s: float = 10.0) -> Any:
    """The JSON that a GET request answers with; None when there is none to be had."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as response:
            return json.load(response)
    except (OSError, ValueError):
        return None


def wait_for_http(url: str, timeout_s: float) -> bool:
    """Whether the address answers 200 before the time is up."""
    deadline_s = time.monotonic() + timeout_s
    while http_status(url) != 200:
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(POLL_S)
    return True
