"""A host outside the VPC that says and writes down which source address it sees.

HTTP on port 80, over IPv4 and IPv6, answers any GET or POST with the source address and a
newline; UDP on the echo port answers "ADDRESS:PORT " and what came. Each line of the log is one visit.
"""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from vpc import layout
from vpc.netns import Namespace

LONGEST = 65535  # a UDP payload fits


class Internet:
    """The host's two services, in its own namespace."""

    def __init__(self, namespace: Namespace, state_dir: Path):
        self._path = state_dir / layout.INTERNET_LOG
        self._path.write_text("")
        self._lock = threading.Lock()
        internet = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 30.0

            def do_GET(self) -> None:
                internet.record("tcp", self.client_address, self.path)
                body = f"{self.client_address[0]}\n".encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.servers = []
        for host in (layout.INTERNET_ADDRESS, layout.INTERNET_IPV6_ADDRESS):
            address = (host, layout.INTERNET_HTTP_PORT)
            server = ThreadingHTTPServer(address, Handler, False)
            server.socket.close()
            server.socket = namespace.listen(*address)
            server.daemon_threads = True
            self.servers.append(server)
        self.udp = namespace.bind_udp(layout.INTERNET_ADDRESS, layout.INTERNET_UDP_PORT)

    def record(self, protocol: str, source: tuple[str, int], what: str) -> None:
        """Writes one visit down, at once."""
        visit = {
            "time": time.time(),
            "protocol": protocol,
            "source": source[0],
            "port": source[1],
            "what": what[:200],
        }
        with self._lock, self._path.open("a") as log:
            log.write(json.dumps(visit) + "\n")

    def echo(self) -> None:
        """Answers datagrams until the socket is closed."""
        while True:
            try:
                payload, source = self.udp.recvfrom(LONGEST)
            except OSError:
                return
            self.record("udp", source, payload.decode(errors="replace"))
            self.udp.sendto(f"{source[0]}:{source[1]} ".encode() + payload, source)
