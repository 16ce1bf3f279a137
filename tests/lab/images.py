#!/usr/bin/env python3
"""images.py AGNHOST CACHE: an archive of the pause image and agnhost, made without an image builder.

Prints the archive's path. It is a docker-archive of two images from scratch: busybox (static) and the
agnhost that the components build, under the tags that the upstream suite and the demo ask for.
"""
from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import tarfile
from pathlib import Path

BUSYBOX = Path("/bin/busybox")
PAUSE = "localhost/pause:1"
AGNHOST = "localhost/agnhost:dev"
REGISTRY = "registry.k8s.io/e2e-test-images/agnhost"
AGNHOST_TAGS = [AGNHOST, f"{REGISTRY}:2.63.0", f"{REGISTRY}:2.55"]
APPLETS = ["sh", "cat", "sleep", "ls", "wget", "nc", "ip", "ping", "echo", "env", "ps",
           "true", "timeout"]


def layer(files: list[tuple[str, str | Path]]) -> bytes:
    """An uncompressed layer: (path in the image, file to copy or '->target' for a link), in this order."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        made: set[str] = set()
        for path, source in files:
            parts = path.split("/")[:-1]
            for depth in range(1, len(parts) + 1):
                folder = "/".join(parts[:depth])
                if folder not in made:
                    made.add(folder)
                    info = tarfile.TarInfo(folder)
                    info.type, info.mode = tarfile.DIRTYPE, 0o755
                    tar.addfile(info)
            info = tarfile.TarInfo(path)
            if isinstance(source, str):
                info.type, info.linkname = tarfile.SYMTYPE, source.removeprefix("->")
                tar.addfile(info)
            else:
                info.size, info.mode = source.stat().st_size, 0o755
                with open(source, "rb") as file:
                    tar.addfile(info, file)
    return out.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def write(agnhost: Path, out: Path) -> None:
    """Writes the archive."""
    busybox: list[tuple[str, str | Path]] = [("bin/busybox", BUSYBOX)]
    busybox += [(f"bin/{applet}", "->busybox") for applet in APPLETS]
    images = [
        # The pod's first process only has to stay; `sleep infinity` is what busybox calls for ever.
        ([PAUSE], busybox, ["/bin/sleep", "2147483647"]),
        (AGNHOST_TAGS, [*busybox, ("agnhost", agnhost)], ["/agnhost"]),
    ]
    manifest = []
    with tarfile.open(out, "w") as tar:
        for tags, files, entrypoint in images:
            blob = layer(files)
            digest = hashlib.sha256(blob).hexdigest()
            config = json.dumps({
                "architecture": "amd64", "os": "linux",
                "config": {"Entrypoint": entrypoint, "Env": ["PATH=/bin:/"]},
                "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
            }).encode()
            name = hashlib.sha256(config).hexdigest()
            _add(tar, f"{digest}.tar", blob)
            _add(tar, f"{name}.json", config)
            manifest.append({"Config": f"{name}.json", "RepoTags": tags, "Layers": [f"{digest}.tar"]})
        _add(tar, "manifest.json", json.dumps(manifest).encode())


def cached(agnhost: Path, cache: Path) -> Path:
    """The archive's path in the cache, where it is made if it is not there for these very inputs."""
    if not BUSYBOX.exists():
        raise FileNotFoundError(f"{BUSYBOX}: install busybox-static")
    # The components folder is named for its content, so agnhost's path and size identify it.
    parts = [Path(__file__).read_bytes(), str(agnhost).encode(), str(agnhost.stat().st_size).encode(), BUSYBOX.read_bytes()]
    key = hashlib.sha256(b"".join(parts)).hexdigest()[:16]
    folder = cache / "images"
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / f"agnhost-{key}.tar"
    if not out.exists():
        part = out.with_suffix(f".{os.getpid()}.part")
        write(agnhost, part)
        part.rename(out)
    return out


if __name__ == "__main__":
    print(cached(Path(sys.argv[1]), Path(sys.argv[2])))
