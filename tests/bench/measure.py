"""How something is measured, and how figures are shown: medians of rounds with their spread, ratios within a round."""

import asyncio
import statistics
import time
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import msgspec


class Figure(msgspec.Struct, frozen=True):
    """The median of several rounds, and the lowest and highest of them."""

    median: float
    low: float
    high: float

    def text(self, digits: int = 0) -> str:
        """`median (low..high)`, with so many digits behind the point."""
        return f"{self.median:,.{digits}f} ({self.low:,.{digits}f}..{self.high:,.{digits}f})"


def figure(values: Iterable[float]) -> Figure:
    """Of at least one value."""
    values = list(values)
    return Figure(statistics.median(values), min(values), max(values))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Figure:
    """Ours to theirs, round by round: both of a round met the same noise."""
    return figure(mine / other for mine, other in zip(ours, theirs, strict=True) if other)


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Of values in order, at least one."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


class Table(msgspec.Struct, frozen=True):
    """What is shown: a title, what must be known to read it, and rows of text."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        """For a terminal: columns under each other, the first to the left, the others to the right."""
        widths = [max(len(row[at]) for row in (self.columns, *self.rows)) for at in range(len(self.columns))]
        lines = [f"\n{self.title}"]
        for row in (self.columns, *self.rows):
            cells = [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
            lines.append("  " + "  ".join(cells).rstrip())
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])

    def markdown(self) -> str:
        """For a document."""
        lines = [f"### {self.title}", "", _row(self.columns), _row(("---",) + ("---:",) * (len(self.columns) - 1))]
        lines += [_row(row) for row in self.rows]
        if self.notes:
            lines += ["", *(f"- {note}" for note in self.notes)]
        return "\n".join(lines)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


class Part(msgspec.Struct, frozen=True):
    """What one part of the run has found: tables for people, figures by name for programs and for the verdicts."""

    tables: list[Table]
    figures: dict[str, Figure]


class Plan(msgspec.Struct, frozen=True):
    """How much is measured: so many rounds, so long each; logs of so many events; how long idleness is watched."""

    rounds: int
    seconds: float
    events: tuple[int, ...]
    idle_s: float


class Contender(Protocol):
    """Something that hands out devices, each known by a number."""

    name: str

    async def lease(self, device: int) -> Any:
        """What is needed to release it, or `None` if somebody else has it."""

    async def release(self, device: int, held: Any) -> None:
        """Give back what `lease` gave."""


class Round(msgspec.Struct, frozen=True):
    """What one round of one contender came to."""

    pairs_per_s: float
    refusals_per_s: float
    lease_ms: list[float]
    """How long each lease took to be granted."""


async def leasing(contender: Contender, in_flight: int, devices: int, seconds: float) -> Round:
    """So many workers, each leasing and releasing the device of its number (modulo `devices`), one after the other."""
    lease_ms: list[float] = []
    refused = 0
    begun_s = time.perf_counter()
    end_s = begun_s + seconds

    async def work(device: int) -> None:
        nonlocal refused
        while (asked_s := time.perf_counter()) < end_s:
            held = await contender.lease(device)
            if held is None:
                refused += 1
                continue
            lease_ms.append((time.perf_counter() - asked_s) * 1_000)
            await contender.release(device, held)

    await asyncio.gather(*(work(number % devices) for number in range(in_flight)))
    took_s = time.perf_counter() - begun_s
    return Round(len(lease_ms) / took_s, refused / took_s, lease_ms)
