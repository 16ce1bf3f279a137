"""One figure beside its floor."""
from __future__ import annotations

import statistics
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """`value` and `floor` in `unit`; `ratio` is value over floor; `bar` is the most (or the `least`) for the ratio, or
    for the value where there is no floor; `spread` is that of the ratio over its rounds, or None."""

    name: str
    value: float
    unit: str
    floor: float | None = None
    ratio: float | None = None
    bar: float | None = None
    spread: tuple[float, float] | None = None
    least: bool = False

    @property
    def met(self) -> bool:
        """Whether the figure holds its bar; one without a bar does."""
        judged = self.value if self.ratio is None else self.ratio
        return self.bar is None or (judged >= self.bar if self.least else judged <= self.bar)

    def as_json(self) -> dict:
        """The row as results.json has it."""
        return {"name": self.name, "value": self.value, "unit": self.unit, "floor": self.floor, "ratio": self.ratio,
                "bar": self.bar, "least": self.least, "met": self.met, "spread": self.spread}


def of_rounds(name: str, unit: str, values: list[float], floors: list[float], bar: float) -> Row:
    """A row from rounds that took turns: the median of their ratios, with the least and the greatest."""
    ratios = [value / floor for value, floor in zip(values, floors, strict=True)]
    return Row(name, round(statistics.median(values), 3), unit, round(statistics.median(floors), 3),
               round(statistics.median(ratios), 3), bar, (round(min(ratios), 3), round(max(ratios), 3)))


def percentile(values: list[float], percent: float) -> float:
    """The nearest-rank percentile."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100).__trunc__() - 1)]


def table(rows: list[Row]) -> str:
    """Rows for people."""
    lines = [("FIGURE", "VALUE", "FLOOR", "RATIO", "SPREAD", "BAR", "")]
    for row in rows:
        lines.append((row.name, f"{row.value:g} {row.unit}", "" if row.floor is None else f"{row.floor:g} {row.unit}",
                      "" if row.ratio is None else f"{row.ratio:.2f}x",
                      "" if row.spread is None else f"{row.spread[0]:.2f}-{row.spread[1]:.2f}",
                      "" if row.bar is None else f"{'>= ' if row.least else ''}{row.bar:g}{'x' if row.ratio is not None else ' ' + row.unit}",
                      "" if row.bar is None else "met" if row.met else "NOT MET"))
    widths = [max(len(line[column]) for line in lines) for column in range(7)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)
