"""The EC2 endpoint: counts, faults and credentials in front of moto, and errors as XML.

Beside it, on the same port, the lab's own endpoints:

    GET    /lab/state     the truth, without lag
    GET    /lab/calls     calls by action
    GET    /lab/faults    faults in force;  POST adds one;  DELETE [/id] ends one or all
    POST   /lab/lag       {"create": s, "write": s, "settle": s}, any of them
    POST   /lab/credentials  {"seconds": s}: lifetime of role credentials from now on
"""

from __future__ import annotations

import io
import json
import logging
import socket
import struct
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs
from xml.sax.saxutils import escape

from moto.core.utils import camelcase_to_underscores
from moto.ec2.responses import EC2Response
from moto.moto_server.werkzeug_app import create_backend_app

from vpc.faults import BadFault, Fault
from vpc.imds import Imds
from vpc.world import World

log = logging.getLogger("vpc.ec2")

Answer = tuple[int, str, bytes]  # HTTP status, content type, body
XML, JSON = "text/xml;charset=UTF-8", "application/json"


class LostReply(Exception):
    """The call has acted; the connection shall close without an answer."""


class Front:
    """The WSGI application that every endpoint serves."""

    def __init__(self, world: World, imds: Imds):
        self.world, self.imds = world, imds
        self.moto = create_backend_app("ec2")

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        try:
            if environ["PATH_INFO"].startswith("/lab/"):
                status, kind, body = self._lab(environ)
            else:
                status, kind, body = self._ec2(environ)
        except LostReply:
            _reset(environ["werkzeug.socket"])
            status, kind, body = 200, XML, b""
        start_response(
            f"{status} {'OK' if status == 200 else 'Error'}",
            [("Content-Type", kind), ("Content-Length", str(len(body)))],
        )
        return [body]

    # EC2

    def _ec2(self, environ: dict[str, Any]) -> Answer:
        started = time.monotonic()
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        asked = parse_qs(body.decode(errors="replace"))
        asked = asked or parse_qs(environ.get("QUERY_STRING", ""))
        action = asked.get("Action", [""])[0]
        if not action:
            return error(400, "MissingAction", "The request is missing an action.")
        if not hasattr(EC2Response, camelcase_to_underscores(action)):
            # codes: InvalidAction. Also what EC2 knows and moto does not.
            return error(400, "InvalidAction", f"The action {action} is not valid.")
        fault = self.world.faults.called(action)
        answer = self._answer(environ, action, fault)
        log.info(
            "%s %d %s%.1f ms%s",
            action,
            answer[0],
            "" if answer[0] == 200 else _code(answer[2]) + " ",
            (time.monotonic() - started) * 1000,
            f" ({fault.kind})" if fault else "",
        )
        if fault is not None and fault.kind == "lose-reply":
            raise LostReply
        return answer

    def _answer(self, environ: dict[str, Any], action: str, fault: Fault | None) -> Answer:
        if fault is not None:
            match fault.kind:
                case "error":
                    return error(fault.status, fault.code, fault.message)
                case "throttle" | "bucket":
                    # codes: RequestLimitExceeded; "Request throttling": HTTP 503.
                    return error(503, "RequestLimitExceeded", "Request limit exceeded.")
                case "garbage":
                    return 200, XML, b"<<<\x00 this is not what you asked for \xff\xfe"
                case "delay":
                    time.sleep(fault.seconds)
                case "lose-reply":
                    pass
        refusal = self.world.credentials.refusal(
            environ.get("HTTP_AUTHORIZATION", ""), environ.get("HTTP_X_AMZ_SECURITY_TOKEN", "")
        )
        if refusal is not None:
            return error(401, *refusal)
        try:
            with self.world.lock:
                return _call(self.moto, environ)
        except NotImplementedError as problem:
            return self._not_implemented(action, str(problem))
        except Exception as problem:
            # codes, server errors: InternalError. Ours or moto's mistake: in the log.
            log.exception("%s broke", action)
            return error(500, "InternalError", f"{type(problem).__name__}: {problem}")

    def _not_implemented(self, action: str, text: str) -> Answer:
        if "ilter" in text:
            # The code for a filter that an action does not know is unverified.
            return error(400, "InvalidParameterValue", f"The filter is invalid: {text}")
        return error(400, "UnsupportedOperation", f"The lab does not model {action}: {text}")

    # The lab's own endpoints

    def _lab(self, environ: dict[str, Any]) -> Answer:
        path = environ["PATH_INFO"].removeprefix("/lab/").strip("/").split("/")
        method = environ["REQUEST_METHOD"]
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        try:
            order = json.loads(body) if body else {}
            found = self._control(method, path, order)
        except (BadFault, ValueError, TypeError) as problem:
            return 400, JSON, json.dumps({"error": str(problem)}).encode()
        if found is None:
            return 404, JSON, b'{"error": "no such endpoint"}'
        return 200, JSON, json.dumps(found, default=str).encode()

    def _control(self, method: str, path: list[str], order: dict[str, Any]) -> Any:
        world = self.world
        match method, path:
            case "GET", ["state"]:
                with world.lock:
                    return world.dump()
            case "GET", ["calls"]:
                return world.faults.calls()
            case "GET", ["faults"]:
                return world.faults.listed()
            case "POST", ["faults"]:
                if order.get("kind") == "stale":
                    self.imds.freeze()
                return asdict(world.faults.add(order))
            case "DELETE", ["faults"]:
                world.faults.clear(None)
                return {}
            case "DELETE", ["faults", fault]:
                world.faults.clear(fault)
                return {}
            case "POST", ["lag"]:
                with world.lock:
                    for name, seconds in order.items():
                        if name not in asdict(world.lag):
                            raise ValueError(f"lag {name}: one of {', '.join(asdict(world.lag))}")
                        setattr(world.lag, name, float(seconds))
                    return asdict(world.lag)
            case "POST", ["credentials"]:
                world.credentials.lifetime = timedelta(seconds=float(order["seconds"]))
                return {}
            case _:
                return None


def error(status: int, code: str, message: str) -> Answer:
    """An error as EC2 words it (API reference, "Example error response")."""
    text = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Response><Errors><Error><Code>{escape(code)}</Code>"
        f"<Message>{escape(message)}</Message></Error></Errors>"
        f"<RequestID>{uuid.uuid4()}</RequestID></Response>"
    )
    return status, XML, text.encode()


def _call(app: Callable[..., Iterable[bytes]], environ: dict[str, Any]) -> Answer:
    head: list[Any] = []
    body = b"".join(app(environ, lambda status, headers, _=None: head.extend((status, headers))))
    status, headers = head
    kind = next((value for name, value in headers if name.lower() == "content-type"), XML)
    return int(status.split()[0]), kind, body


def _code(body: bytes) -> str:
    return body.partition(b"<Code>")[2].partition(b"</Code>")[0].decode(errors="replace")


def _reset(connection: socket.socket) -> None:
    """Ends a connection as a lost one ends: reset, nothing sent."""
    linger = struct.pack("ii", 1, 0)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    connection.shutdown(socket.SHUT_RDWR)
