"""The VPC process: `python -m vpc --state DIR [--prefix P] [--lag S]`.

Runs until SIGTERM or SIGINT, then removes its namespaces. `vpc.client` starts it detached.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

from vpc import layout

log = logging.getLogger("vpc")


def main() -> int:
    """Starts everything, waits for a signal, ends everything."""
    parser = argparse.ArgumentParser(prog="vpc", description=__doc__)
    parser.add_argument("--state", type=Path, required=True, help="directory of vpc.json")
    parser.add_argument("--prefix", default=layout.DEFAULT_PREFIX, help="of namespace names")
    parser.add_argument("--lag", type=float, default=layout.DEFAULT_LAG, help="seconds")
    arguments = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(name)s %(message)s", level=logging.INFO)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)

    me = f"pid {os.getpid()}, state {arguments.state}"
    held, holder = layout.lock(arguments.prefix, me)
    if holder is not None:
        print(f"a VPC with prefix {arguments.prefix!r} runs already: {holder}", file=sys.stderr)
        return 1
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    (arguments.state / layout.INFO).unlink(missing_ok=True)
    _write(arguments.state / layout.OWNER, {"pid": os.getpid(), "prefix": arguments.prefix})
    _remove_namespaces(arguments.state)
    for name in ("fabric", "internet"):
        layout.remove_namespace(arguments.prefix + name)
    try:
        stop = _start(arguments)
        ended.wait()
        stop()
    finally:
        (arguments.state / layout.INFO).unlink(missing_ok=True)
        _remove_namespaces(arguments.state)
        layout.lock_path(arguments.prefix).unlink()
        held.close()
    log.info("ended")
    return 0


def _start(arguments: argparse.Namespace) -> Any:
    # moto takes most of a second to load: after the lock and the signals are in place.
    from werkzeug.serving import WSGIRequestHandler, make_server

    from vpc import actions, assignment, attachments, enis, instances, reads  # noqa: F401
    from vpc.fabric import Fabric
    from vpc.front import Front
    from vpc.imds import Imds
    from vpc.internet import Internet
    from vpc.world import World

    class Quiet(WSGIRequestHandler):
        def log_request(self, *_: Any) -> None:
            pass

    fabric = Fabric(arguments.prefix, arguments.state)
    world = World(arguments.state, fabric, arguments.lag)
    actions.install(world)
    instances.patch_instances()
    reads.patch_subnets(world)
    reads.patch_tags(world)
    world.build()
    imds = Imds(world)
    front = Front(world, imds)
    internet = Internet(fabric.internet, arguments.state)
    servers: list[Any] = [imds.serve(fabric.namespace), *internet.servers]
    inside = fabric.namespace.listen(layout.EC2_ADDRESS, layout.EC2_PORT)
    beside = socket.create_server(("127.0.0.1", 0))
    for listening in (inside, beside):
        host, port = listening.getsockname()
        servers.append(
            make_server(
                host, port, front, threaded=True, request_handler=Quiet, fd=listening.fileno()
            )
        )
    threads = [
        threading.Thread(target=server.serve_forever, args=(0.1,), name="serve", daemon=True)
        for server in servers
    ]
    threads.append(threading.Thread(target=internet.echo, name="echo", daemon=True))
    for thread in threads:
        thread.start()
    _write(arguments.state / layout.INFO, _info(arguments, world, beside.getsockname()[1]))
    log.info("ready: %s", arguments.state / layout.INFO)

    def stop() -> None:
        # Whoever is in a call finishes it; nobody begins another. The threads are daemons.
        world.lock.acquire()
        fabric.close()

    return stop


def _info(arguments: argparse.Namespace, world: Any, port: int) -> dict[str, Any]:
    from vpc.addresses import ipv6_block

    subnets: dict[str, list[dict[str, str]]] = {}
    for kind, subnet_id in world.subnets:
        subnet = world.backend.get_subnet(subnet_id)
        vpc = world.vpcs[subnet.vpc_id]
        subnets.setdefault(kind, []).append(
            {
                "id": subnet.id,
                "zone": subnet.availability_zone,
                "cidr": subnet.cidr_block,
                "ipv6_cidr": str(ipv6_block(subnet)),
                "gateway": str(subnet.cidr.network_address + 1),
                "vpc": vpc.id,
                "security_group": vpc.default_group,
            }
        )
    return {
        "pid": os.getpid(),
        "prefix": arguments.prefix,
        "ec2_endpoint": f"http://{layout.EC2_ADDRESS}:{layout.EC2_PORT}",
        "ec2_loopback": f"http://127.0.0.1:{port}",
        "imds_endpoint": f"http://{layout.IMDS_ADDRESS}:{layout.IMDS_PORT}",
        "region": world.region,
        "account": world.account,
        "access_key_id": layout.ACCESS_KEY_ID,
        "secret_access_key": layout.SECRET_ACCESS_KEY,
        "vpc_id": world.vpc_id,
        "vpc_cidr": layout.VPC_CIDR,
        "pod_cidr": layout.POD_CIDR,
        "subnets": subnets["node"],
        "pod_subnets": subnets["pod"],
        "security_group": world.vpcs[world.vpc_id].default_group,
        "pod_security_group": world.vpcs[world.vpc_id].pod_group,
        "peer_vpc_id": world.peer_id,
        "peer_cidr": layout.PEER_CIDR,
        "peer_subnets": subnets["peer"],
        "internet_address": layout.INTERNET_ADDRESS,
        "internet_ipv6_address": layout.INTERNET_IPV6_ADDRESS,
        "internet_http_port": layout.INTERNET_HTTP_PORT,
        "internet_udp_port": layout.INTERNET_UDP_PORT,
        "internet_log": str(arguments.state / layout.INTERNET_LOG),
        "namespaces": {
            "fabric": world.fabric.name,
            "internet": world.fabric.internet_name,
        },
    }


def _remove_namespaces(state: Path) -> None:
    made = state / layout.MADE_NAMESPACES
    if made.exists():
        for name in made.read_text().split():
            layout.remove_namespace(name)
        made.unlink()


def _write(path: Path, content: dict[str, Any]) -> None:
    """In one step: whoever sees the file sees all of it."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=2) + "\n")
    part.rename(path)


if __name__ == "__main__":
    sys.exit(main())
