"""A certificate authority of the cluster's own, made with openssl for each start.

It is a real one, not the API server's self-signed certificate: agents that verify with rustls
accept only a server certificate that an authority signed and that names the address they call.
"""
from __future__ import annotations

import base64
import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

DAYS = "30"
# name of the files -> subject. The API server's built-in roles are bound to these names.
CLIENTS = {
    "admin": "/O=system:masters/CN=admin",
    "controllers": "/CN=system:kube-controller-manager",
    "scheduler": "/CN=system:kube-scheduler",
    "proxy": "/CN=system:kube-proxy",
}


def _openssl(*arguments: str, text: str | None = None) -> str:
    done = subprocess.run(["openssl", *arguments], input=text, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"openssl {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def _key(path: Path) -> None:
    _openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", str(path))


class Authority:
    """The authority and what it has signed, as files NAME.crt and NAME.key in one folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.certificate = folder / "ca.crt"

    def make(self, server_names: list[str], nodes: list[str]) -> None:
        """Makes the authority, the API server's certificate and one for each client."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        _key(self.folder / "ca.key")
        _openssl("req", "-x509", "-new", "-key", str(self.folder / "ca.key"), "-subj", "/CN=selvage-lab", "-days", DAYS,
                 "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign",
                 "-out", str(self.certificate))
        clients = dict(CLIENTS)
        clients |= {node: f"/O=system:nodes/CN=system:node:{node}" for node in nodes}
        with ThreadPoolExecutor(4) as pool:
            jobs = [pool.submit(self._sign, "server", "/CN=kube-apiserver", "serverAuth", server_names)]
            jobs += [pool.submit(self._sign, name, subject, "clientAuth", []) for name, subject in clients.items()]
            jobs.append(pool.submit(_openssl, "genrsa", "-out", str(self.folder / "sa.key"), "2048"))
            for job in jobs:
                job.result()
        _openssl("rsa", "-in", str(self.folder / "sa.key"), "-pubout", "-out", str(self.folder / "sa.pub"))

    def _sign(self, name: str, subject: str, usage: str, names: list[str]) -> None:
        key, request, extensions = (str(self.folder / f"{name}.{kind}") for kind in ("key", "csr", "ext"))
        _key(Path(key))
        _openssl("req", "-new", "-key", key, "-subj", subject, "-out", request)
        lines = ["basicConstraints=CA:FALSE", "keyUsage=digitalSignature", f"extendedKeyUsage={usage}"]
        if names:
            kinds = [f"{'IP' if one[0].isdigit() or ':' in one else 'DNS'}:{one}" for one in names]
            lines.append(f"subjectAltName={','.join(kinds)}")
        Path(extensions).write_text("\n".join(lines) + "\n")
        # A serial number of its own for each: several are signed at once, so no shared counter.
        serial = "0x01" + _openssl("rand", "-hex", "8").strip()
        _openssl("x509", "-req", "-in", request, "-CA", str(self.certificate), "-CAkey", str(self.folder / "ca.key"),
                 "-set_serial", serial, "-days", DAYS, "-extfile", extensions, "-out", str(self.folder / f"{name}.crt"))

    def kubeconfig(self, client: str, server: str, path: Path) -> None:
        """Writes a kubeconfig that needs no other file."""
        def data(name: str) -> str:
            return base64.b64encode((self.folder / name).read_bytes()).decode()

        path.write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "lab",
            "clusters": [{"name": "lab", "cluster": {"server": server, "certificate-authority-data": data("ca.crt")}}],
            "users": [{"name": client, "user": {
                "client-certificate-data": data(f"{client}.crt"), "client-key-data": data(f"{client}.key")}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": client}}],
        }, indent=1))
        path.chmod(0o600)
