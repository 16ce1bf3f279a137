"""MaxResults and NextToken.

Source: API reference, "MaxResults" of each action: 5 to 1000 for interfaces and subnets, 5
to 100 for instance types; not together with ids. Wording of the refusals is unverified.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

from vpc import errors
from vpc.actions import Call

SMALLEST = 5


def page(call: Call, items: list[Any], ids: str, largest: int) -> tuple[list[Any], str | None]:
    """The page that was asked for, and the token of the next."""
    size = call.count("MaxResults")
    token = call.text("NextToken")
    if size is None and token is None:
        return items, None
    if size is not None and call.listed(ids):
        name = ids[0].lower() + ids[1:]
        raise errors.bad_combination(f"The parameter {name} cannot be used with maxResults")
    if size is not None and not SMALLEST <= size <= largest:
        raise errors.bad_value(
            f"Value ( {size} ) for parameter maxResults is invalid."
            f" Expecting a value from {SMALLEST} to {largest}."
        )
    start = _start(token) if token else 0
    end = start + (size or largest)
    rest = base64.urlsafe_b64encode(f"from {end}".encode()).decode() if end < len(items) else None
    return items[start:end], rest


def _start(token: str) -> int:
    try:
        word, number = base64.urlsafe_b64decode(token).decode().split()
        if word == "from":
            return int(number)
    except (binascii.Error, ValueError):
        pass
    raise errors.bad_page_token()
