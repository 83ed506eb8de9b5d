"""What keeps a device from being leased beside leases and ties: what operators said, who waits for it, who shares it.

| rule | what it says |
|---|---|
| `cordoned` | an operator said that nothing of it, or of its host, is granted |
| `tainted` | it, or its host, has a taint that is not tolerated |
| `quarantined` | it failed its holders too often |
| `unclean` | nobody has confirmed that it was cleaned up behind another tenant |
| `kept` | it is kept for somebody who waits, and comes first |
| `shared` | others share it: who wants it alone waits for them, who would share it, too, if there are enough of them |
| `not_shareable` | it is not to be shared |
| `host_not_managed`, `not_detached` | it cannot be handed over in the way that was said |
"""

from collections.abc import Iterator

from leasehold.events.hostdevs import STUBS, Handover
from leasehold.events.identities import DeviceId, HostName
from leasehold.events.position import lease_id_text, queued_id_text
from leasehold.events.refusals import Blocker
from leasehold.projections import failing
from leasehold.projections.rows import DeviceState, Mark, Marks
from leasehold.projections.state import State
from leasehold.projections.terms import Terms, tolerated


def by_host(state: State, device: DeviceId, host: HostName, terms: Terms) -> Iterator[Blocker]:
    """What keeps every device of a host from being leased; `device`: one of them."""
    row = state.hosts[host]
    stale = row.stale
    if stale:
        yield is_stale(device, host, stale)
    if row.marks is not None:
        yield from _of_marks(device, row.marks, host, terms)


def is_stale(device: DeviceId, host: HostName, stale: str) -> Blocker:
    """What says that a host's picture is out of date."""
    why = f"what is known of host {host} may be out of date ({stale})"
    return Blocker(device=device, rule="host_stale", why=why, help=f"see that the agents on {host} run")


def by_marks(state: State, device: DeviceId, row: DeviceState, terms: Terms) -> Iterator[Blocker]:
    """What was said of a device and of its host."""
    host = state.hosts[row.host]
    if host.marks is not None:
        yield from _of_marks(device, host.marks, row.host, terms)
    if row.marks is None:
        return
    if state.rules_version >= failing.RULES and row.quarantine is None and failing.has_failed(row):
        yield Blocker(device=device, rule="quarantined", why=failing.why(row), help=failing.way_out(device))
    yield from _of_marks(device, row.marks, "", terms)
    if row.marks.unclean_position and row.marks.unclean_tenant != terms.tenant:
        whose = row.marks.unclean_tenant or "its last tenant"
        yield Blocker(
            device=device,
            rule="unclean",
            why=f"nobody has confirmed that it was cleaned up behind {whose}",
            since_position=row.marks.unclean_position,
            help=f"clean it up, then: leasehold clean {device} --reason …",
        )


def _of_marks(device: DeviceId, marks: Marks, host: str, terms: Terms) -> Iterator[Blocker]:
    """`host`: whose marks these are; empty: the device's own."""
    which, target = (f"its host {host}", f"--host {host}") if host else ("it", device)
    if marks.cordon is not None:
        why = f"{which} was cordoned by {marks.cordon.by}{_because(marks.cordon.reason)}"
        yield _said(device, "cordoned", marks.cordon, why, f"choose another device, or: leasehold uncordon {target}")
    for mark in marks.taints:
        if mark.taint is not None and not tolerated(mark.taint, terms.tolerates):
            value = f"={mark.taint.value}" if mark.taint.value else ""
            why = f"{which} has the taint {mark.taint.name}{value}{_because(mark.taint.reason)}"
            help_text = f"choose another device, or tolerate {mark.taint.name} where you know what it means"
            yield _said(device, "tainted", mark, why, help_text)


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""


def _said(device: DeviceId, rule: str, mark: Mark, why: str, help_text: str) -> Blocker:
    return Blocker(device=device, rule=rule, why=why, since_position=mark.position, help=help_text)


def by_sharing(state: State, device: DeviceId, row: DeviceState, terms: Terms) -> Iterator[Blocker]:
    """Whether one more can share it, or whether nobody does."""
    if not terms.mode:
        if row.sharers:
            yield shared(state, device, device, "it")
        return
    policy = row.marks.policy if row.marks is not None else None
    if policy is None or policy.share_max < 2:
        help_text = f"lease it alone, or let an operator say: leasehold policy {device} --share N"
        yield Blocker(device=device, rule="not_shareable", why="it is not to be shared", help=help_text)
    elif len(row.sharers) >= policy.share_max:
        yield shared(state, device, device, f"it has room for {policy.share_max}, and")


def shared(state: State, device: DeviceId, other: DeviceId, begin: str) -> Blocker:
    """What says that `device` cannot be had, because `other`, the same or one that goes with it, is shared."""
    sharers = state.devices[other].sharers
    lease = state.leases[sharers[0]]
    more = f" and {len(sharers) - 1} more" if len(sharers) > 1 else ""
    return Blocker(
        device=device,
        rule="shared",
        why=f"{begin} is shared by {lease.holder} ({lease_id_text(sharers[0])}){more}",
        because_of="" if other == device else other,
        lease=sharers[0],
        holder=lease.holder,
        since_ns=lease.granted_at_ns,
        since_position=sharers[0],
        help="wait until those who share it have released it",
    )


def keeper(state: State, device: DeviceId, terms: Terms, owner: tuple[str, str] | None = None) -> int:
    """For whom a device is kept who comes before these terms, and is not `owner` (principal, holder); 0: for nobody."""
    queued = state.keeper_before(device, terms.rank_ns, terms.queued)
    if queued and owner is not None:
        row = state.queue[queued]
        if (row.principal, row.asked.holder) == owner:
            return 0
    return queued


def kept(state: State, device: DeviceId, other: DeviceId, queued: int, begin: str) -> Blocker:
    """What says that `device` cannot be had, because `other`, the same or one that goes with it, is kept."""
    row = state.queue[queued]
    return Blocker(
        device=device,
        rule="kept",
        why=f"{begin} is kept for {row.asked.holder} ({queued_id_text(queued)}), who waits and comes first",
        because_of="" if other == device else other,
        holder=row.asked.holder,
        since_ns=row.queued_at_ns,
        since_position=queued,
        help="wait, too (--wait), or choose another device",
    )


def not_handed_over(state: State, device: DeviceId, handover: Handover) -> Blocker | None:
    """What says that a device cannot be handed over in the way that was said."""
    row = state.devices[device]
    if state.hosts[row.host].mode != "managed":
        return Blocker(
            device=device,
            rule="host_not_managed",
            why=f"{device}: no binder acts on {row.host}, so nothing is handed over there",
            help=f"run a binder on {row.host}, or say neither a driver nor that devices are unmanaged",
        )
    driver = row.description.driver
    if handover.unmanaged and row.description.kind == "pci" and driver not in STUBS:
        bound = f"bound to {driver}" if driver else "bound to no driver"
        return Blocker(
            device=device,
            rule="not_detached",
            why=f"{device} is {bound}: an unmanaged device must be detached from the host by hand",
            help=f"leasehold nodedev detach {device}, or lease it managed",
        )
    return None
