"""Credentials that IMDS hands out and EC2 checks: key id, session token, expiry.

Signatures are not verified. Role credentials last about six hours and are renewed before
they end (EC2 User Guide, "Retrieve security credentials": new ones are available at least
five minutes before the old expire).
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from vpc import layout

LIFETIME = timedelta(hours=6)
RENEW_BEFORE = timedelta(minutes=5)


@dataclass(frozen=True)
class RoleCredentials:
    """One set, as an instance sees it."""

    access_key_id: str
    secret_access_key: str
    token: str
    updated: datetime
    expires: datetime


class Credentials:
    """What was issued, and to whom."""

    def __init__(self) -> None:
        self.lifetime = LIFETIME
        self._by_instance: dict[str, RoleCredentials] = {}
        self._by_key: dict[str, RoleCredentials] = {}

    def for_instance(self, instance: str) -> RoleCredentials:
        """The instance's current credentials, made anew shortly before they expire."""
        now = datetime.now(UTC)
        current = self._by_instance.get(instance)
        if current is None or now > current.expires - min(RENEW_BEFORE, self.lifetime / 2):
            current = RoleCredentials(
                "ASIA" + secrets.token_hex(8).upper(),
                secrets.token_urlsafe(30),
                secrets.token_urlsafe(90),
                now,
                now + self.lifetime,
            )
            self._by_instance[instance] = current
            self._by_key[current.access_key_id] = current
        return current

    def refusal(self, authorization: str, token: str) -> tuple[str, str] | None:
        """(code, message) if a request's credentials are no good, with HTTP 401.

        codes: AuthFailure, RequestExpired, MissingAuthenticationToken."""
        if not authorization:
            return "MissingAuthenticationToken", "Request is missing Authentication Token"
        try:
            scope = authorization.split("Credential=", 1)[1].split(",", 1)[0]
            key, _day, region, _service, _kind = scope.split("/")
        except (IndexError, ValueError):
            return "IncompleteSignature", "The request signature does not conform to AWS standards"
        if region != layout.REGION:
            return "AuthFailure", f"Credential should be scoped to a valid region: {layout.REGION}"
        if key == layout.ACCESS_KEY_ID:
            return None
        issued = self._by_key.get(key)
        if issued is None or issued.token != token:
            return "AuthFailure", "AWS was not able to validate the provided access credentials"
        if datetime.now(UTC) > issued.expires:
            return "RequestExpired", "Request has expired."
        return None
