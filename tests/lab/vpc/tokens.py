"""Client tokens: the same request twice is one.

Source: "Ensuring idempotency in Amazon EC2 API requests": the same token with the same
parameters does nothing further and answers the first result; with other parameters it is
IdempotentParameterMismatch. How long EC2 remembers is not followed: here for good.
"""

from __future__ import annotations

from typing import Any

from vpc import errors


class ClientTokens:
    """Token to the parameters it came with and the resource it made."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, str], tuple[Any, Any]] = {}

    def earlier(self, action: str, token: str | None, parameters: Any) -> Any | None:
        """What an earlier request with this token made; None for the first one."""
        if not token:
            return None
        if len(token) > 64:  # "Maximum 64 ASCII characters"
            raise errors.bad_value(f"Invalid client token '{token}'")
        if (action, token) not in self._made:
            return None
        before, made = self._made[action, token]
        if before != parameters:
            raise errors.token_reused(token)
        return made

    def remember(self, action: str, token: str | None, parameters: Any, made: Any) -> None:
        """Notes what a token made, once it is made."""
        if token:
            self._made[action, token] = (parameters, made)
