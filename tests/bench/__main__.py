"""`make bench`: prints tables of one run. Medians and spread (lowest..highest round); ratios matter, not rates."""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from tests.bench import (
    again,
    machine,
    memory,
    polling,
    readers,
    replay,
    requests,
    scheduling,
    subscribers,
    verdicts,
    watching,
)
from tests.bench.measure import Figure, Part, Plan, Table

PARTS: Final[dict[str, Callable[[Path, Plan], Awaitable[Part]]]] = {
    "requests": requests.measure,
    "replay": replay.measure,
    "again": again.measure,
    "memory": memory.measure,
    "scheduling": scheduling.measure,
    "watching": watching.measure,
    "polling": polling.measure,
    "subscribers": subscribers.measure,
    "readers": readers.measure,
}
BEGIN: Final = "<!-- measured: begin -->"
END: Final = "<!-- measured: end -->"


class Report(msgspec.Struct, frozen=True):
    """One run."""

    plan: Plan
    tables: list[Table]
    figures: dict[str, Figure]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, show, and if asked write."""
    options = _options(arguments)
    plan = Plan(options.rounds, options.seconds, tuple(sorted(options.events)), options.idle)
    report = asyncio.run(_measure(options.only or list(PARTS), plan, quiet=options.json))
    if options.json:
        print(msgspec.json.format(msgspec.json.encode(report)).decode())
    if options.write is not None:
        write(options.write, report)
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of each measurement (5)")
    parser.add_argument("--seconds", type=float, default=0.6, help="that a round of requests takes (0.6)")
    parser.add_argument("--events", type=int, nargs="+", default=[100_000, 1_000_000], help="in the logs started on")
    parser.add_argument("--idle", type=float, default=20.0, help="seconds for which idleness is watched (20)")
    parser.add_argument("--only", choices=PARTS, action="append", help="this part; may be given again")
    parser.add_argument("--json", action="store_true", help="print all figures as JSON, and nothing else")
    parser.add_argument("--write", type=Path, metavar="FILE", help=f"replace what stands between {BEGIN} and {END}")
    return parser.parse_args(arguments)


async def _measure(names: Sequence[str], plan: Plan, *, quiet: bool) -> Report:
    tables: list[Table] = []
    figures: dict[str, Figure] = {}

    def add(part: Part) -> None:
        tables.extend(part.tables)
        figures.update(part.figures)
        if not quiet:
            print(*(table.text() for table in part.tables), sep="\n", flush=True)

    begun_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="leasehold-bench-") as made:
        # PostgreSQL, as another user, must reach its own directory; what lies beside that is private by itself.
        Path(made).chmod(0o711)
        add(machine.describe(Path(made)))
        for name in names:
            folder = Path(made) / name
            folder.mkdir()
            add(await PARTS[name](folder, plan))
    add(Part([verdicts.judge(figures)], {}))
    if not quiet:
        print(f"\n{time.monotonic() - begun_s:.0f} s")
    return Report(plan, tables, figures)


def write(path: Path, report: Report) -> None:
    """Put the tables of this run in the place of those of the run before, the verdicts first."""
    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{path} has no lines {BEGIN} and {END}")
    plan = report.plan
    how = f"{plan.rounds} rounds of {plan.seconds:g} s each; figures are medians (lowest..highest round)."
    texts = [how, *(table.markdown() for table in (report.tables[-1], *report.tables[:-1]))]
    path.write_text(
        f"{before}{BEGIN}\n\n{chr(10).join(f'{text}{chr(10)}' for text in texts)}\n{END}{after}", encoding="utf-8"
    )


if __name__ == "__main__":
    sys.exit(main())
