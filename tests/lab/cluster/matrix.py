"""Connectivity matrices: the hand-written tables, the measurement of every cell, the comparison."""
from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from .kube import KubectlError
from .progress import Cancelled, cancelled

REACHES, DOES_NOT = "+", "."
# Seconds a connection may take. A wrong cell is tried again with more patience, since a machine
# that is busy can be late but cannot let through what is dropped.
FIRST, PATIENT = 1, 3
# How many kubectl exec at once; each starts a process for every column in its pod.
WORKERS = 4


class TableError(Exception):
    """A hand-written table that can't be read."""


@dataclass(frozen=True)
class Target:
    """A column: a pod, Service or host by its name in the table, and where on it."""

    name: str
    port: int
    protocol: str

    @staticmethod
    def parse(text: str) -> Target:
        """`web:80` or `dns:53/udp`."""
        name, _, rest = text.partition(":")
        port, _, protocol = rest.partition("/")
        if not name or not port.isdigit() or protocol not in ("", "udp"):
            raise TableError(f"{text}: a column is NAME:PORT or NAME:PORT/udp")
        return Target(name, int(port), protocol or "tcp")

    def __str__(self) -> str:
        return f"{self.name}:{self.port}" + ("/udp" if self.protocol == "udp" else "")


@dataclass
class Table:
    """Who reaches whom: rows are sources, columns targets, in the order of the file."""

    sources: list[str]
    targets: list[Target]
    cells: dict[tuple[str, Target], bool] = field(default_factory=dict)

    @staticmethod
    def read(path: Path) -> Table:
        """Reads a table as app/under.txt explains it."""
        return Table.parse(path.read_text(), path.name)

    @staticmethod
    def parse(text: str, name: str) -> Table:
        """Reads a table; `name` is for the error's message."""
        lines = [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]
        if not lines or lines[0][0] != "from":
            raise TableError(f"{name}: the first row must begin with `from` and name the columns")
        table = Table([row[0] for row in lines[1:]], [Target.parse(column) for column in lines[0][1:]])
        for row in lines[1:]:
            if len(row) != len(table.targets) + 1 or not set(row[1:]) <= {REACHES, DOES_NOT}:
                raise TableError(f"{name}: row {row[0]}: one + or . for each of {len(table.targets)} columns")
            for target, cell in zip(table.targets, row[1:]):
                table.cells[row[0], target] = cell == REACHES
        if len(table.cells) != len(table.sources) * len(table.targets):
            raise TableError(f"{name}: a row or column is there twice")
        return table

    def wrong(self, expected: Table) -> list[tuple[str, Target]]:
        """The cells that differ, in the table's order."""
        return [cell for cell, reaches in expected.cells.items() if self.cells.get(cell) != reaches]

    def render(self, expected: Table) -> str:
        """The table for people; a cell that is not as expected is in brackets."""
        head = [str(target) for target in self.targets]
        width = max(len(source) for source in self.sources)
        lines = [" ".join(["from".ljust(width), *head])]
        wrong = set(self.wrong(expected))
        for source in self.sources:
            row = [source.ljust(width)]
            for target, column in zip(self.targets, head):
                mark = REACHES if self.cells[source, target] else DOES_NOT
                row.append((f"[{mark}]" if (source, target) in wrong else f" {mark}").ljust(len(column)))
            lines.append(" ".join(row).rstrip())
        return "\n".join(lines)


# Tries every column at once, and says for each by its number whether the server was reached: TCP is
# when the connection stands, UDP when an answer came. (busybox for TCP: it costs a tenth of agnhost.)
SCRIPT = """
reached() {
  if [ "$3" = udp ]; then /agnhost connect "$1:$2" --protocol=udp --timeout="$wait"s
  else nc -w "$wait" "$1" "$2" -e true
  fi 2>/dev/null </dev/null
}
while [ $# -gt 0 ]; do
  (if reached "$2" "$3" "$4"; then echo "$1 +"; else echo "$1 ."; fi) &
  shift 4
done
wait
"""


class Prober:
    """Measures cells by connecting from inside the source pods.

    `pods`: name -> namespace, of the sources. `addresses`: name -> address, of the targets.
    """

    def __init__(self, kubectl, pods: dict[str, str], addresses: dict[str, str]):
        self.kubectl, self.pods, self.addresses = kubectl, pods, addresses

    def measure(self, cells: list[tuple[str, Target]], patience: int = FIRST) -> dict[tuple[str, Target], bool]:
        """Makes a real connection for each cell."""
        by_source: dict[str, list[Target]] = {}
        for source, target in cells:
            by_source.setdefault(source, []).append(target)
        found = {}
        with ThreadPoolExecutor(WORKERS) as pool:
            jobs = {source: pool.submit(self._from, source, targets, patience) for source, targets in by_source.items()}
            for source, job in jobs.items():
                for target, reaches in job.result().items():
                    found[source, target] = reaches
        return found

    def _from(self, source: str, targets: list[Target], patience: int) -> dict[Target, bool]:
        if cancelled.is_set():
            raise Cancelled(source)
        words = []
        for number, target in enumerate(targets):
            words += [str(number), self.addresses[target.name], str(target.port), target.protocol]
        done = self.kubectl.run(
            "-n", self.pods[source], "exec", source, "--", "sh", "-c", f"wait={patience}\n{SCRIPT}", "sh", *words)
        answers = dict(line.split() for line in done.splitlines())
        if set(answers) != {str(number) for number in range(len(targets))}:
            raise KubectlError(f"exec in {source}: it answered for {len(answers)} of {len(targets)} cells")
        return {target: answers[str(number)] == REACHES for number, target in enumerate(targets)}
