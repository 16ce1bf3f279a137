"""Traffic as a test sends it: each function runs inside a namespace's thread."""

from __future__ import annotations

import http.client
import os
import socket
import struct
import time
from collections.abc import Callable

from vpc import layout
from vpc.netns import Namespace

SOON = 2.0  # seconds for an answer that comes
NEVER = 0.25  # seconds to wait for one that must not


def http_get(
    address: str,
    path: str = "/",
    *,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    source: str | None = None,
    timeout: float = SOON,
    port: int = 80,
) -> Callable[[], tuple[int, str]]:
    """Status and body of a request. Raises OSError where nothing answers."""

    def request() -> tuple[int, str]:
        connection = http.client.HTTPConnection(
            address, port, timeout, source_address=(source, 0) if source else None
        )
        try:
            connection.request(method, path, headers=headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    return request


def pings(
    address: str, source: str | None = None, timeout: float = SOON, device: str | None = None
) -> Callable[[], bool]:
    """Whether an echo request is answered."""

    def ping() -> bool:
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        with raw:
            if device is not None:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
            if source is not None:
                raw.bind((source, 0))
            number = int.from_bytes(os.urandom(2), "big")
            head = struct.pack("!BBHHH", 8, 0, 0, number, 1)
            total = sum(struct.unpack("!4H", head))
            while total >> 16:
                total = (total & 0xFFFF) + (total >> 16)
            try:
                raw.sendto(struct.pack("!BBHHH", 8, 0, ~total & 0xFFFF, number, 1), (address, 0))
            except OSError:
                return False
            until = time.monotonic() + timeout
            while (left := until - time.monotonic()) > 0:
                raw.settimeout(left)
                try:
                    packet, sender = raw.recvfrom(2048)
                except TimeoutError:
                    return False
                kind, _, _, got, _ = struct.unpack("!BBHHH", packet[20:28])
                if kind == 0 and got == number and sender[0] == address:
                    return True
            return False

    return ping


def udp_reply(address: str, port: int, source: str | None = None) -> Callable[[], str | None]:
    """What a datagram is answered with, or None."""

    def ask() -> str | None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            if source is not None:
                probe.bind((source, 0))
            probe.settimeout(NEVER)
            probe.sendto(b"hello", (address, port))
            try:
                return probe.recv(2048).decode()
            except TimeoutError:
                return None

    return ask


class Metadata:
    """IMDS as one namespace sees it."""

    def __init__(self, inside: Namespace):
        self.inside = inside

    def ask(self, path: str, **more: object) -> tuple[int, str]:
        return self.inside.run(http_get(layout.IMDS_ADDRESS, path, **more))  # type: ignore[arg-type]

    def token(self, seconds: str = "60") -> str:
        status, token = self.ask(
            "/latest/api/token",
            method="PUT",
            headers={"X-aws-ec2-metadata-token-ttl-seconds": seconds},
        )
        assert status == 200
        return token

    def read(self, path: str, token: str | None = None) -> tuple[int, str]:
        """A key below /latest/, with a token."""
        headers = {"X-aws-ec2-metadata-token": token or self.token()}
        return self.ask(f"/latest/{path}", headers=headers)

    def value(self, path: str) -> str:
        """A key that has to be there."""
        status, text = self.read(path)
        assert status == 200, path
        return text
