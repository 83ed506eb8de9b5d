"""Domains for people: one a line, or one with all that it uses."""

from typing import Final

from leasehold.events.views import DomainView, UsedView
from leasehold.services.cli import render
from leasehold.services.cli.values import time_text

_MIB: Final = 1024 * 1024


def domains(rows: list[DomainView]) -> None:
    """Domains, one a line."""
    several_hosts = len({row.host for row in rows}) > 1
    columns = [*(["host"] if several_hosts else []), "name", "state", "domid", "memory", "vcpus", "devices", "uuid"]
    table = [[*([row.host] if several_hosts else []), *_cells(row)] for row in rows]
    # Where all is up to date, nobody needs to be told.
    if any(row.stale for row in rows):
        columns.append("picture")
        table = [[*cells, row.stale or "up to date"] for cells, row in zip(table, rows, strict=True)]
    render.table(columns, table)


def _cells(row: DomainView) -> list[str]:
    # What it has, it most often claims, too.
    has = {use.said for use in row.uses if use.use == "attached"}
    shown = (use for use in row.uses if use.use == "attached" or use.said not in has)
    uses = ", ".join(f"{use.said} ({_how(use)})" for use in shown)
    return [row.name or "-", row.state, _number(row), _memory(row.memory_bytes), str(row.vcpus or "-"), uses, row.uuid]


def _how(use: UsedView) -> str:
    """What a use means for the device, in a word."""
    if use.use == "configured":
        return "configured"
    return "foreign" if use.foreign else use.lease or "attached"


def _number(row: DomainView) -> str:
    return str(row.domid) if row.domid >= 0 else "-"


def _memory(size: int) -> str:
    if not size:
        return "-"
    return f"{size // _MIB} MiB" if size % _MIB == 0 else f"{size} B"


def domain(row: DomainView) -> None:
    """One domain, field by field, and below that what it uses."""
    incarnation = f"domid {row.domid}" if row.domid >= 0 else "none"
    cells = [
        ("name", row.name),
        ("domain", row.domain),
        ("uuid", row.uuid),
        ("state", row.state),
        ("incarnation", f"{incarnation}, since {time_text(row.since_ns)} (position {row.since_position})"),
        ("kind", row.kind),
        ("memory", _memory(row.memory_bytes)),
        ("memory at most", _memory(row.max_memory_bytes)),
        ("vcpus", str(row.vcpus or "-")),
        ("leases", ", ".join(row.leases)),
        ("told by", row.agent),
        ("picture", row.stale or "up to date"),
    ]
    render.table(("field", "value"), [cell for cell in cells if cell[1] not in ("", "-")])
    if row.uses:
        render.line("")
        render.table(("uses", "how", "lease", "devices"), map(_use_cells, row.uses))


def _use_cells(use: UsedView) -> list[str]:
    how = f"{use.use}, foreign" if use.foreign else use.use
    return [use.said, how, use.lease or "-", ", ".join(use.devices) or "none that is known"]
