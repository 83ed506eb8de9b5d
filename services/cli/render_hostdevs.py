"""Host devices for people: which are in use, and where the witnesses differ."""

from leasehold.events.hostdevs import DRIFTS, Truth
from leasehold.events.views import DriftView, HostdevView
from leasehold.services.cli import render
from leasehold.services.cli.values import time_text


def hostdevs(rows: list[HostdevView]) -> None:
    """Devices in use or held ready, one a line."""
    several_hosts = len({_host(row) for row in rows}) > 1
    columns = [
        *(["host"] if several_hosts else []),
        *("device", "bus", "state", "used by", "how", "lease", "holder", "driver"),
    ]
    render.table(columns, [[*([_host(row)] if several_hosts else []), *_cells(row)] for row in rows])


def _host(row: HostdevView) -> str:
    return row.device.partition("/")[0]


def _cells(row: HostdevView) -> list[str]:
    user = " ".join(filter(None, (row.hypervisor, row.domain_name or row.domain)))
    return [row.name, row.bus, row.state, user or "-", _how(row), row.lease or "-", row.holder or "-", _driver(row)]


def _how(row: HostdevView) -> str:
    if row.attached:
        return "attached" if row.lease else "attached, no lease"
    if row.lease:
        return "prepared" if row.prepared else "leased"
    return "-"


def _driver(row: HostdevView) -> str:
    if row.was_driver and row.was_driver != row.driver:
        return f"{row.driver or '-'} (was {row.was_driver})"
    return row.driver or "-"


def drifts(rows: list[DriftView]) -> None:
    """Devices about which the witnesses differ, one below the other: what each says, since when, and what to do."""
    if not rows:
        render.line("nothing differs: the ledger, the hypervisors and the hosts agree")
    for number, row in enumerate(rows):
        if number:
            render.line("")
        _drift(row)


def _drift(row: DriftView) -> None:
    render.line(f"{row.device}  {row.kind}: {DRIFTS.get(row.kind, row.kind)}")
    told = [("ledger", row.leased), ("hypervisors", row.attached), ("host", row.bound)]
    width = max(len(truth.says) for _, truth in told)
    for who, truth in told:
        render.line(f"  {who:<11}  {truth.says:<{width}}{_since(truth)}")
    render.line(f"  told at      {time_text(row.since_ns)} (position {row.since_position})")
    if row.help:
        render.line(f"  what to do   {row.help}")


def _since(truth: Truth) -> str:
    return f"  since position {truth.position}" if truth.position else ""
