"""Output: tables on a terminal, plain columns in a pipe, one JSON object a line with `--json`."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from leasehold.events import codec
from leasehold.events.answers import Answer
from leasehold.events.capabilities import Capability
from leasehold.events.hostdevs import DRIFTS
from leasehold.events.position import lease_id_text, queued_id_text
from leasehold.events.views import BindingView, DeviceView, HistoryRow, HostView, LeaseView
from leasehold.projections.hostdevtelling import reset_text
from leasehold.services.cli.values import duration_text, time_text
from leasehold.services.nodedev.tree import tree

_STYLES: Final = {
    "free": "green", "leased": "cyan", "ending": "yellow", "lost": "red", "foreign": "magenta", "protected": "dim",
    "missing": "red", "unleasable": "dim", "stale": "yellow", "blocked": "yellow", "living": "cyan", "ended": "dim",
    "quarantined": "red", "active": "cyan", "inactive": "yellow",
}  # fmt: skip
_PIPE_COLUMNS: Final = 10_000
_FOLDED: Final = ("reason", "devices", "value", "picture", "before", "after", "how", "used by")
"""Columns that may take several lines where the terminal is narrow."""
_NAMING: Final = ("model", "interface", "description", "driver", "mdev_type", "target", "char", "drm_type", "product")
"""What of a capability says best which device it is, where no list of ids does."""
_UNSAID: Final = ("", -1, (), None)


def shown(text: str) -> str:
    """The text with nothing in it that a terminal would obey: what devices and other people say of themselves."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def line(text: str, *, err: bool = False) -> None:
    """One line for people."""
    click.echo(shown(text), err=err)


def json_line(value: object) -> None:
    """One object, one line."""
    click.echo(codec.encode(value).decode())


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Rows for people. The column `state` is coloured where there are colours."""
    is_terminal = sys.stdout.isatty()
    console = Console(width=None if is_terminal else _PIPE_COLUMNS, highlight=False, soft_wrap=not is_terminal)
    rows_of = Table(box=None, pad_edge=False, header_style="bold" if is_terminal else "")
    for column in columns:
        rows_of.add_column(column, no_wrap=column not in _FOLDED, overflow="fold")
    for row in rows:
        # Text, not markup: names come from hardware and from other people.
        rows_of.add_row(*(Text(shown(cell), style=_STYLES.get(cell, "") if is_terminal else "") for cell in row))
    console.print(rows_of)


def devices(rows: list[DeviceView]) -> None:
    """Devices as a tree: each below its parent."""
    several_hosts = len({row.host for row in rows}) > 1
    columns = [*(["host"] if several_hosts else []), "name", "driver", "what", "state", "reason"]
    placed = list(tree(rows))
    cells = [[*([row.host] if several_hosts else []), *_device_cells(row, depth)] for row, depth in placed]
    if any(row.used_by for row in rows):
        columns.append("used by")
        cells = [[*each, _users(row)] for each, (row, _) in zip(cells, placed, strict=True)]
    if any(row.binding or row.drift for row in rows):
        columns.append("handed over")
        cells = [[*each, _handed(row)] for each, (row, _) in zip(cells, placed, strict=True)]
    table(columns, cells)


def _handed(row: DeviceView) -> str:
    """How far a device is handed over, in a word or two, and whether the witnesses differ about it."""
    words = [row.binding.state.replace("_", " ")] if row.binding else []
    return ", ".join([*words, f"drift: {row.drift}"] if row.drift else words)


def _users(row: DeviceView) -> str:
    """The domains that have a device or claim it, by name; who has it most often claims it, too."""
    having = {user.domain for user in row.used_by if user.use == "attached"}
    shown = (user for user in row.used_by if user.use == "attached" or user.domain not in having)
    return ", ".join(f"{user.name or user.domain} ({user.use})" for user in shown)


def _device_cells(row: DeviceView, depth: int) -> list[str]:
    return [f"{'  ' * depth}{row.name}", row.driver or "-", _what(row), row.state, row.reason]


def _what(row: DeviceView) -> str:
    ids = f"{row.vendor_id}:{row.product_id}" if row.vendor_id else ""
    told = {**row.attributes, **_capability_fields(row.capability, "")}
    named = row.product_name or next((told[name] for name in _NAMING if told.get(name)), "")
    return " ".join(part for part in (named, ids) if part) or row.kind


def _capability_fields(capability: Capability | None, name: str) -> dict[str, str]:
    """What a capability says that is worth saying, behind `name`; nested things as `fc_host.wwpn`."""
    return dict(_flattened(msgspec.to_builtins(capability), name))


def _flattened(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        value = {each["id"]: each for each in value}
    if not isinstance(value, dict):
        if value not in _UNSAID:
            yield name, _plain(value)
        return
    for field, nested in value.items():
        # The tag of a capability; what the kernel says of another device may be called so, too.
        if field != "type" or name.endswith("values"):
            yield from _flattened(nested, f"{name}.{field}" if name else field)


def device(row: DeviceView) -> None:
    """One device, field by field."""
    fields = {name: getattr(row, name) for name in row.__struct_fields__ if name not in ("attributes", "capability")}
    fields["since_ns"] = time_text(row.since_ns) if row.since_ns else ""
    fields["flaps"] = row.flaps or ""
    fields["binding"] = _binding_text(row.binding) if row.binding else ""
    fields["drift"] = f"{row.drift}: {DRIFTS.get(row.drift, '')}" if row.drift else ""
    fields["used_by"] = tuple(f"{user.name} {user.domain} ({user.use}, as {user.said})".strip() for user in row.used_by)
    told = {name.removesuffix("_ns"): _plain(value) for name, value in fields.items() if value not in _UNSAID}
    kind = row.capabilities[0] if row.capabilities else row.kind
    table(
        ("field", "value"), [*told.items(), *_capability_fields(row.capability, kind).items(), *row.attributes.items()]
    )


def _binding_text(row: BindingView) -> str:
    """How far a device is handed over, in a line."""
    facts = [row.state.replace("_", " ")]
    if row.driver:
        facts.append(f"bound to {row.driver}")
    if row.was_driver:
        facts.append(f"was {row.was_driver}")
    if row.reset:
        facts.append(f"reset by {reset_text(row.reset)}")
    if row.since_ns:
        facts.append(f"since {time_text(row.since_ns)} (position {row.since_position})")
    text = ", ".join(facts)
    return text + (f": {row.reason}" if row.reason else "") + (f" (what helps: {row.help})" if row.help else "")


def lease(row: LeaseView) -> None:
    """One lease, field by field."""
    cells = [
        ("lease", row.lease),
        ("state", row.state + (f" ({row.ended})" if row.ended else "")),
        ("holder", row.holder),
        ("principal", row.principal),
        ("token", str(row.token) if row.token else "(shown to its principal only)"),
        ("devices", ", ".join(row.devices)),
        ("granted", time_text(row.granted_at_ns)),
        ("expires", _expiry(row)),
        ("ttl", duration_text(row.ttl_ms)),
        ("domain", _bond(row)),
        ("handed over", row.prepared.replace("_", " ")),
        ("reason", row.reason),
    ]
    table(("field", "value"), [cell for cell in cells if cell[1]])


def _bond(row: LeaseView) -> str:
    """For which domain a lease is; mostly empty."""
    if not row.domain or row.gone_ms < 0:
        return f"{row.domain} (only named)" if row.domain else ""
    gone = f"; gone since {time_text(row.gone_since_ns)}" if row.gone_since_ns else ""
    return f"{row.domain}, until {duration_text(row.gone_ms)} after it is gone{gone}"


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def leases(rows: list[LeaseView]) -> None:
    """Leases, one a line."""
    columns = ["lease", "state", "holder", "devices", "expires", "principal"]
    cells = [_lease_cells(row) for row in rows]
    if any(row.prepared for row in rows):
        columns.append("handed over")
        cells = [[*each, row.prepared.replace("_", " ") or "-"] for each, row in zip(cells, rows, strict=True)]
    table(columns, cells)


def _lease_cells(row: LeaseView) -> list[str]:
    state = row.ended or row.state
    beside = row.mode or (f"in place of {row.reserved_for}" if row.reserved_for else "")
    told = f"{state}, {beside}" if beside and not row.ended else state
    return [row.lease, told, row.holder, ", ".join(row.devices), _expiry(row), row.principal]


def _expiry(row: LeaseView) -> str:
    by_itself = time_text(row.expires_at_ns) if row.expires_at_ns else "with its domain"
    return f"{by_itself}, evicted {time_text(row.evicts_at_ns)}" if row.evicts_at_ns else by_itself


def hosts(rows: list[HostView]) -> None:
    """Hosts, one a line."""
    marked = any(row.cordoned or row.taints for row in rows)
    columns = ("host", "mode", "devices", "picture", *(["marks"] if marked else []))
    cells = (
        (row.host, row.mode, str(row.devices), row.stale or "up to date", *([_marks(row)] if marked else []))
        for row in rows
    )
    table(columns, cells)


def _marks(row: HostView) -> str:
    return ", ".join((*(["cordoned"] if row.cordoned else []), *row.taints)) or "-"


def history_row(row: HistoryRow) -> None:
    """One event of the past."""
    line(f"{row.position:>12}  {time_text(row.decided_at_ns)}  {row.text}")


def lease_object(answer: Answer) -> dict[str, object]:
    """An answered lease as an object for programs."""
    return {
        "outcome": answer.outcome,
        "lease": lease_id_text(answer.lease) if answer.lease else "",
        "token": answer.token,
        "holder": answer.holder,
        "devices": answer.devices,
        "state": answer.state,
        "ended": answer.ended,
        "prepared": answer.prepared,
        "leases": [lease_id_text(lease) for lease in answer.leases],
        "message": answer.message,
        "ttl_ms": answer.ttl_ms,
        "expires_at_ns": answer.expires_at_ns,
        "queued": queued_id_text(answer.queued) if answer.queued else "",
        "ahead": answer.ahead,
        "kept": list(answer.kept),
        "until_ns": answer.until_ns,
        "why": answer.refusal.message if answer.refusal is not None else "",
        "reserved_for": lease_id_text(answer.reserved_for) if answer.reserved_for else "",
        "not_renewed": msgspec.to_builtins(answer.not_renewed),
        "search": msgspec.to_builtins(answer.search),
        "position": answer.position,
        "request_id": answer.request_id,
    }


def granted(answer: Answer) -> None:
    """A granted lease for people."""
    if answer.ended:
        why = f": {answer.message}" if answer.message else ""
        line(f"lease {lease_id_text(answer.lease)} was granted, and has ended ({answer.ended}){why}", err=True)
        line(f"  {', '.join(answer.devices)} for {answer.holder} ({answer.state})", err=True)
        return
    prepared = f", {answer.prepared}" if answer.prepared else ""
    line(f"lease {lease_id_text(answer.lease)}  token {answer.token}  {answer.state}{prepared}")
    line(f"  {', '.join(answer.devices)} for {answer.holder}")
    if answer.reserved_for:
        line(f"  reserved: it stands in for {lease_id_text(answer.reserved_for)} behind `leasehold switch`")
    line(f"  until {time_text(answer.expires_at_ns)} unless renewed (ttl {duration_text(answer.ttl_ms)})")


def refused(answer: Answer) -> None:
    """A refusal for people, on standard error: what stood in the way, and what helps."""
    refusal = answer.refusal
    assert refusal is not None
    # Most messages are what the blockers say; where devices were searched for, that says it of all of them.
    told = refusal.blockers if refusal.search is None else ()
    is_said = any(blocker.why in refusal.message for blocker in told)
    line(f"refused ({refusal.code})" + ("" if is_said else f": {refusal.message}"), err=True)
    for blocker in told:
        since = f", since {time_text(blocker.since_ns)} (position {blocker.since_position})" if blocker.since_ns else ""
        line(f"  {blocker.device}: {blocker.why}{since}", err=True)
    if refusal.search is not None:
        from leasehold.services.cli.render_scheduling import search

        search(refusal.search, err=True)
    if refusal.help:
        line(f"  what helps: {refusal.help}", err=True)


def refusal_object(answer: Answer) -> dict[str, object]:
    """A refusal as an object for programs."""
    refusal = answer.refusal
    assert refusal is not None
    told = msgspec.to_builtins(refusal)
    first = refusal.blockers[0] if refusal.blockers else None
    return {
        "outcome": "refused",
        **told,
        "holder": first.holder if first else "",
        "lease": lease_id_text(first.lease) if first and first.lease else "",
        "position": answer.position,
        "request_id": answer.request_id,
    }


def answered(answer: Answer, *, as_json: bool) -> None:
    """How a request was decided, for people or as an object."""
    if answer.outcome == "refused":
        if as_json:
            json_line(refusal_object(answer))
        else:
            refused(answer)
    elif answer.outcome == "invalid":
        line(answer.message, err=True)
    elif as_json:
        json_line(lease_object(answer))
    elif answer.outcome in ("granted", "renewed", "transferred", "switched") and answer.lease:
        granted(answer)
    elif answer.outcome == "queued":
        from leasehold.services.cli.render_scheduling import queued

        queued(answer)
    else:
        for each in answer.not_renewed:
            line(f"not renewed ({each.code}): {each.message}", err=True)
        leases = answer.leases or ((answer.lease,) if answer.outcome in ("released", "revoked") else ())
        leases_text = "".join(f" {lease_id_text(lease)}" for lease in leases)
        devices_text = f": {', '.join(answer.devices)}" if answer.devices else ""
        state = ", ".join(filter(None, (answer.state or "done", answer.prepared.replace("_", " "))))
        line(f"{answer.outcome.replace('_', ' ')}{leases_text}{devices_text} ({state})")
