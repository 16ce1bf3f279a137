"""Instance metadata at 169.254.169.254, version 2.

Source: EC2 User Guide, "Use the Instance Metadata Service": a token by PUT with its
lifetime (1 s to 6 h), 400 for a bad lifetime, 401 for a missing or wrong token, 403 where
metadata is switched off or the PUT was forwarded, 404 for what is not there. The answer to
the PUT travels as many hops as the instance's options say: the IP TTL of that answer alone
("response hop limit"). A key answers with a slash at its end too: botocore asks so for the
zone. Unverified: 403 and not silence where the endpoint is disabled; a folder lists itself
without its slash.

The caller is who holds the source address: the fabric lets no other use it. So a pod is
answered for its node, and only if the token's answer gets as far as the pod.
"""

from __future__ import annotations

import copy
import logging
import secrets
import select
import socket
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from vpc import layout
from vpc.faults import Fault
from vpc.metadata import Tree, interfaces, tree
from vpc.netns import Namespace
from vpc.world import World

log = logging.getLogger("vpc.imds")

LONGEST_TOKEN = 21600  # seconds
TTL_HEADER = "X-aws-ec2-metadata-token-ttl-seconds"
TOKEN_HEADER = "X-aws-ec2-metadata-token"
ORDINARY_TTL = 64
VERSIONS = ("latest", "2021-07-15", "2022-09-24")  # the SDKs ask for a dated one or latest
IDLE = 60.0  # seconds a connection may stay without a request


class Imds:
    """The service: tokens, and trees as they were when a test froze them."""

    def __init__(self, world: World):
        self.world = world
        self._tokens: dict[str, tuple[str, float]] = {}
        self._frozen: dict[str, Tree] = {}

    def freeze(self) -> None:
        """Keeps every instance's interface tree, for the fault "stale"."""
        with self.world.lock:
            self._frozen = {
                instance.id: copy.deepcopy(interfaces(self.world, instance))
                for instance in self.world.instances()
                if instance.nics
            }

    def caller(self, address: str) -> Any | None:
        """The instance that holds an address."""
        with self.world.lock:
            eni = self.world.holder(address)
            return eni.instance if eni is not None else None

    def token(self, instance: str, seconds: float) -> str:
        """A new token for one instance."""
        token = secrets.token_urlsafe(40)
        self._tokens[token] = (instance, time.monotonic() + seconds)
        return token

    def accepts(self, instance: str, token: str) -> bool:
        """Whether a token is this instance's and still good."""
        owner, until = self._tokens.get(token, ("", 0.0))
        return owner == instance and time.monotonic() < until

    def read(self, instance: Any, path: list[str], stale: bool) -> str | None:
        """The text at a path below a version, or None."""
        with self.world.lock:
            now = tree(self.world, instance)
        if stale:
            now["meta-data"]["network"]["interfaces"]["macs"] = self._frozen.get(instance.id, {})
        found: Tree | str = now
        for name in path[:-1] if path[-1:] == [""] else path:
            if not isinstance(found, dict) or name not in found:
                return None
            found = found[name]
        if isinstance(found, dict):
            return "\n".join(
                name + ("/" if isinstance(below, dict) else "") for name, below in found.items()
            )
        return found

    def serve(self, namespace: Namespace) -> ThreadingHTTPServer:
        """A server bound inside the fabric, to be run by the caller."""
        listening = namespace.listen(layout.IMDS_ADDRESS, layout.IMDS_PORT)

        class Handler(_Handler):
            imds = self

        server = ThreadingHTTPServer((layout.IMDS_ADDRESS, layout.IMDS_PORT), Handler, False)
        server.socket.close()
        server.socket = listening
        server.daemon_threads = True
        return server


class _Handler(BaseHTTPRequestHandler):
    imds: Imds
    protocol_version = "HTTP/1.1"
    server_version = "EC2ws"
    sys_version = ""
    timeout = IDLE
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._handle(self._get)

    def do_PUT(self) -> None:
        self._handle(self._put)

    def _handle(self, answer: Any) -> None:
        instance = self.imds.caller(self.client_address[0])
        if instance is None:
            self.close_connection = True
            return
        fault = self.imds.world.faults.imds(instance.id)
        stale = False
        if fault is not None:
            match fault.kind:
                case "silent":
                    self._stay_silent(fault)
                    return
                case "error":
                    self._answer(fault.status, "")
                    return
                case "delay":
                    time.sleep(fault.seconds)
                case "stale":
                    stale = True
        if instance.metadata_options.http_endpoint == "disabled":
            self._answer(403, "")
            return
        answer(instance, stale)

    def _put(self, instance: Any, _stale: bool) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(length)
        if self.path != "/latest/api/token":
            self._answer(404, "")
            return
        if self.headers.get("X-Forwarded-For") is not None:
            self._answer(403, "")
            return
        asked = self.headers.get(TTL_HEADER, "")
        if not asked.isdecimal() or not 1 <= int(asked) <= LONGEST_TOKEN:
            self._answer(400, "")
            return
        token = self.imds.token(instance.id, int(asked))
        hops = instance.metadata_options.http_put_response_hop_limit
        self._answer(200, token, hops, {TTL_HEADER: asked})

    def _get(self, instance: Any, stale: bool) -> None:
        token = self.headers.get(TOKEN_HEADER)
        needed = instance.metadata_options.http_tokens == "required"
        if (token is None and needed) or (
            token is not None and not self.imds.accepts(instance.id, token)
        ):
            self._answer(401, "")
            return
        path = self.path.split("?", 1)[0].lstrip("/").split("/")
        if path == [""]:
            self._answer(200, "\n".join(VERSIONS))
            return
        found = self.imds.read(instance, path[1:], stale) if path[0] in VERSIONS else None
        if found is None:
            self._answer(404, "")
        else:
            self._answer(200, found)

    def _answer(
        self,
        status: int,
        body: str,
        hops: int = ORDINARY_TTL,
        headers: dict[str, str] | None = None,
    ) -> None:
        data = body.encode()
        self.connection.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, hops)
        self.send_response(status)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _stay_silent(self, fault: Fault) -> None:
        """Answers nothing until the fault is cleared or the caller has gone. A fault with
        a count that has run out is not in force any more: silence then ends with the caller."""
        self.close_connection = True
        counted = fault.count is not None
        until = time.monotonic() + IDLE
        while time.monotonic() < until and (counted or self.imds.world.faults.in_force(fault)):
            readable, _, _ = select.select([self.connection], [], [], 0.1)
            if readable and not self.connection.recv(1, socket.MSG_PEEK):
                return

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)
