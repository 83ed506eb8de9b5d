"""What was shown, and how long it took: gathered while scenarios run, printed at the end."""

import statistics
from collections import defaultdict
from typing import Final, NamedTuple

SOURCES: Final = ("udev", "kernel", "clock")
"""`clock`: the watcher looked again by itself, before it was told or without being told."""

_HOT_PLUG: Final = ("PCI ", "NVMe ", "USB ")


class Delay(NamedTuple):
    """How long one change took. Milliseconds."""

    asked_ms: float
    """From our asking QEMU (or the kernel) for it to the kernel's event being read inside; -1: not asked from here."""
    ledger_ms: float
    """From the kernel's event being read inside to the ledger's record being read here."""
    udevd_ms: float = -1
    """Of that, until udevd told the same event; -1: it did not."""


class Figures:
    """Delays by what happened and by who told the watcher; and sentences."""

    def __init__(self) -> None:
        self._delays: dict[tuple[str, str], list[Delay]] = defaultdict(list)
        self.shown: list[tuple[str, str]] = []
        """By scenario: what it has shown."""

    def delay(self, what: str, source: str, delay: Delay) -> None:
        """Keep one."""
        self._delays[what, source].append(delay)

    def all_of(self, source: str, *beginnings: str) -> list[float]:
        """The delays into the ledger of what this source told, ms; with `beginnings`, of what is called like that."""
        return [
            each.ledger_ms
            for (what, told), delays in self._delays.items()
            if told == source and what.startswith(beginnings or "")
            for each in delays
        ]

    def table(self) -> list[str]:
        """The lines of a table: a row for each thing that happened, medians by source."""
        names = list(dict.fromkeys(what for what, _ in self._delays))
        told_by = (f"{source}: n, p50, max" for source in SOURCES)
        columns = ["what", *told_by, "of that udevd, p50", "until the kernel's event, p50"]
        rows = [columns]
        for name in names:
            told = {source: self._delays.get((name, source), []) for source in SOURCES}
            cells = [_cell([delay.ledger_ms for delay in told[source]]) for source in SOURCES]
            udevd = _median([delay.udevd_ms for delay in told["udev"]])
            asked = _median([delay.asked_ms for delays in told.values() for delay in delays])
            rows.append([name, *cells, udevd, asked])
        rows.append(["PCI and USB", *(_cell(self.all_of(source, *_HOT_PLUG)) for source in SOURCES), "", ""])
        rows.append(["all", *(_cell(self.all_of(source)) for source in SOURCES), "", ""])
        widths = [max(len(row[at]) for row in rows) for at in range(len(columns))]
        return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _median(times_ms: list[float]) -> str:
    known = [each for each in times_ms if each >= 0]
    return f"{statistics.median(known):.0f} ms" if known else "-"


def _cell(delays_ms: list[float]) -> str:
    if not delays_ms:
        return "-"
    return f"{len(delays_ms)}, {statistics.median(delays_ms):.0f} ms, {max(delays_ms):.0f} ms"
