"""The API server from the driver: direct requests for polling, kubectl for what people type."""
from __future__ import annotations

import http.client
import json
import os
import ssl
import subprocess
from pathlib import Path

from . import namespaces
from .config import CONTROL_PLANE


class ApiError(OSError):
    """The API server answered with an error status."""

    def __init__(self, path: str, status: int, text: str):
        super().__init__(f"{path}: {status} {text[:300]}")
        self.status = status


class KubectlError(Exception):
    """kubectl ended with an error; the message is its last words."""


class _Connection(http.client.HTTPSConnection):
    """HTTPS from inside the control plane's network namespace."""

    def connect(self) -> None:
        raw = namespaces.connect(CONTROL_PLANE, self.host, self.port, self.timeout)
        self.sock = self._context.wrap_socket(raw, server_hostname=self.host)


class Api:
    """A client with the administrator's certificate. Each request has a connection of its own."""

    def __init__(self, state: Path, address: str, port: int):
        self.state, self.address, self.port = state, address, port
        folder = state / "certificates"
        self.context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
        self.context.load_cert_chain(str(folder / "admin.crt"), str(folder / "admin.key"))

    def get_text(self, path: str) -> str:
        """The body of a GET. Raises ApiError for any status but 200, OSError if nobody answers."""
        connection = _Connection(self.address, self.port, timeout=10, context=self.context)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            text = answer.read().decode()
        except http.client.HTTPException as error:
            raise OSError(f"{path}: {error!r}") from error
        finally:
            connection.close()
        if answer.status != 200:
            raise ApiError(path, answer.status, text)
        return text

    def get(self, path: str) -> dict:
        """A JSON object of the API."""
        return json.loads(self.get_text(path))

    def items(self, path: str) -> list[dict]:
        """The items of a list."""
        return self.get(path)["items"]


class Kubectl:
    """kubectl in the control plane's namespace, with the administrator's kubeconfig."""

    def __init__(self, state: Path, components: Path):
        self.command = [*namespaces.enter(CONTROL_PLANE), str(components / "kubectl"), f"--kubeconfig={state / 'kubeconfig'}"]

    def run(self, *arguments: str, text: str | None = None, timeout: float = 60) -> str:
        """What kubectl prints. Raises KubectlError if it ends with an error."""
        done = self.attempt(*arguments, text=text, timeout=timeout)
        if done.returncode != 0:
            raise KubectlError(f"kubectl {' '.join(arguments)[:200]}: {done.stderr.strip()[-2000:]}")
        return done.stdout

    def attempt(self, *arguments: str, text: str | None = None, timeout: float = 60) -> subprocess.CompletedProcess:
        """Runs kubectl, whatever its exit status."""
        try:
            return subprocess.run([*self.command, *arguments], input=text, capture_output=True, text=True,
                                  timeout=timeout, env={**os.environ, "HOME": "/nonexistent"})
        except subprocess.TimeoutExpired as error:
            raise KubectlError(f"kubectl {' '.join(arguments)[:200]}: no end after {timeout:.0f} s") from error


def condition(item: dict, name: str) -> bool:
    """Whether a node's or pod's condition is true."""
    return any(one["type"] == name and one["status"] == "True" for one in item.get("status", {}).get("conditions", []))
