"""Tables of the past: owners, changes, causes, use."""

from leasehold.events.views import CauseView, ChangeView, OwnerView, UsageView
from leasehold.services.cli import render
from leasehold.services.cli.values import duration_text, time_text


def owners(rows: list[OwnerView]) -> None:
    """Who had which device at one moment."""
    render.table(("device", "state", "holder", "lease", "since", "principal"), map(_owner_cells, rows))


def _owner_cells(row: OwnerView) -> list[str]:
    return [row.device, row.state, row.holder, row.lease, time_text(row.from_ns), row.principal]


def owners_of_one(rows: list[OwnerView]) -> None:
    """Who had one device, one after the other."""
    render.table(("from", "until", "free", "holder", "lease", "principal", "how"), map(_past_owner_cells, rows))


def _past_owner_cells(row: OwnerView) -> list[str]:
    how = " ".join(part for part in (row.ended, row.evidence and f"({row.evidence})", "forced" * row.forced) if part)
    times = [time_text(ns) if ns else "-" for ns in (row.from_ns, row.ended_ns, row.freed_ns)]
    return [*times, row.holder, row.lease, row.principal, how]


def changes(rows: list[ChangeView]) -> None:
    """What is different between two moments."""
    render.table(("device", "what", "before", "after", "position", "when"), map(_change_cells, rows))


def _change_cells(row: ChangeView) -> list[str]:
    return [row.device, row.what, row.before or "-", row.after or "-", str(row.position), time_text(row.at_ns)]


def causes(rows: list[CauseView]) -> None:
    """A chain of causes: each deeper one is why the one above is so."""
    for row in rows:
        because = f"{row.because}: " if row.because else ""
        render.line(f"{row.position:>12}  {time_text(row.at_ns)}  {'  ' * row.depth}{because}{row.text}")


def usage_of_devices(rows: list[UsageView]) -> None:
    """How much of each span a device was held."""
    columns = ("device", "from", "to", "leased", "of it", "ending", "leases")
    render.table(columns, ([*_span_cells(row, f"{_part(row):.1%}"), str(row.leases)] for row in rows))


def usage_of_holders(rows: list[UsageView]) -> None:
    """How much holders held, over all their devices, and how many at a time on average."""
    columns = ("holder", "from", "to", "leased", "average", "ending", "leases", "devices")
    cells = ([*_span_cells(row, f"{_part(row):.2f}"), str(row.leases), str(row.devices)] for row in rows)
    render.table(columns, cells)


def _span_cells(row: UsageView, part: str) -> list[str]:
    times = [time_text(row.from_ns), time_text(row.to_ns)]
    return [row.name, *times, _held_text(row.leased_ns), part, _held_text(row.ending_ns)]


def _part(row: UsageView) -> float:
    return row.leased_ns / max(1, row.to_ns - row.from_ns)


def _held_text(ns: int) -> str:
    return duration_text(ns // 10**6) if ns >= 10**9 or not ns else f"{ns // 10**6}ms"
