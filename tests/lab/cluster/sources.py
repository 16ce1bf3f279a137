"""Who is seen at the far end: the hand-written table of app/modes.txt, and asking a server."""
from __future__ import annotations

import http.client
import ipaddress
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from . import namespaces
from .config import CHECKOUT
from .kube import KubectlError

TABLE = CHECKOUT / "tests" / "lab" / "app" / "modes.txt"
WORDS = ("pod", "node", "uplink", "client", "nobody", "-")
NOBODY = "nobody"
# Seconds that a call may take, at first and when it is tried again: a machine that is busy can be
# late, but cannot let through what is dropped.
FIRST, PATIENT = 2, 5
# How many sources ask at once.
WORKERS = 4

# In a pod: number, URL … It prints a line for each, "NUMBER>ANSWER".
SCRIPT = """
ask() { answer=$(timeout "$wait" wget -q -O - "$2" 2>/dev/null) || answer=; echo "$1>$answer"; }
while [ $# -gt 0 ]; do ask "$1" "$2" & shift 2; done
wait
"""


class SourcesError(Exception):
    """The table cannot be read."""


def read(text: str) -> dict[tuple[str, str], str]:
    """The table: (row, column) to word."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    columns = lines[0].split()[1:]
    found: dict[tuple[str, str], str] = {}
    for line in lines[1:]:
        words = line.split()
        row, cells = " ".join(words[:-len(columns)]), words[-len(columns):]
        if not row or not set(cells) <= set(WORDS) or (row, columns[0]) in found:
            raise SourcesError(f"modes.txt: {line.strip()}: a name of its own and one of {', '.join(WORDS)} for each column")
        found.update({(row, column): cell for column, cell in zip(columns, cells)})
    return found


def expected(path: Path = TABLE) -> dict[tuple[str, str], str]:
    """The table as it is in the checkout."""
    return read(path.read_text())


@dataclass(frozen=True)
class Host:
    """Where a call comes from: a pod by name, or a network namespace."""

    name: str
    pod: bool


@dataclass
class Call:
    """One call: which row it belongs to, who calls what, and which addresses each word means."""

    row: str
    source: Host
    target: str
    port: int
    means: dict[str, tuple[str, ...]]
    to: str = ""
    seen: str = field(default="", compare=False)

    @property
    def url(self) -> str:
        host = f"[{self.target}]" if ":" in self.target else self.target
        return f"http://{host}:{self.port}/clientip"

    def is_as(self, word: str) -> bool:
        """Whether the far end saw who the word says."""
        return self.seen in ((NOBODY,) if word == NOBODY else self.means.get(word, ()))

    def describe(self, word: str) -> str:
        """A line for people, of a call that did not go as it must."""
        is_word = next((one for one, addresses in self.means.items() if self.seen in addresses), "")
        must = NOBODY if word == NOBODY else f"{word} {' or '.join(self.means.get(word, ()))}"
        return (f"{self.row}: {self.source.name} to {self.to or self.target}:{self.port} is seen as "
                f"{self.seen}{f' ({is_word})' if is_word else ''}, must be {must}")


class Asker:
    """Makes calls, from pods by kubectl exec and from namespaces by a socket made in them."""

    def __init__(self, kubectl, namespace: str):
        self.kubectl, self.namespace = kubectl, namespace

    def ask(self, calls: list[Call], patience: int = FIRST) -> None:
        """Fills in whom each far end saw."""
        by_source: dict[Host, list[Call]] = {}
        for call in calls:
            by_source.setdefault(call.source, []).append(call)
        with ThreadPoolExecutor(WORKERS) as pool:
            jobs = [pool.submit(self._from, source, some, patience) for source, some in by_source.items()]
            for job in jobs:
                job.result()

    def _from(self, source: Host, calls: list[Call], patience: int) -> None:
        if not source.pod:
            with ThreadPoolExecutor(8) as pool:
                answers = list(pool.map(lambda call: get(source.name, call.target, call.port, patience), calls))
        else:
            words = [word for number, call in enumerate(calls) for word in (str(number), call.url)]
            done = self.kubectl.run("-n", self.namespace, "exec", source.name, "--", "sh", "-c",
                                    f"wait={patience}\n{SCRIPT}", "sh", *words, timeout=60 + patience)
            told = dict(line.split(">", 1) for line in done.splitlines() if ">" in line)
            if set(told) != {str(number) for number in range(len(calls))}:
                raise KubectlError(f"exec in {source.name}: it answered for {len(told)} of {len(calls)} calls")
            answers = [told[str(number)] for number in range(len(calls))]
        for call, answer in zip(calls, answers):
            call.seen = address_of(answer)


def get(netns: str, address: str, port: int, timeout: float) -> str:
    """What the server says to a call from a namespace; empty if it does not come."""
    try:
        connection = http.client.HTTPConnection(address, port, timeout=timeout)
        connection.sock = namespaces.connect(netns, address, port, timeout)
        connection.sock.settimeout(timeout)
        connection.request("GET", "/clientip")
        answer = connection.getresponse().read().decode()
        connection.close()
        return answer
    except (OSError, http.client.HTTPException):
        return ""


def address_of(answer: str) -> str:
    """The address of `10.0.0.1:4000`, `[fd00::1]:4000` or `10.0.0.1`; "nobody" where there is none."""
    text = answer.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return NOBODY
    mapped = getattr(found, "ipv4_mapped", None)
    return str(mapped or found)
