"""Which devices cannot be owned apart, and what else keeps a device from being leased. Each rule with its text.

| rule | what it says |
|---|---|
| `same_device` | it is leased, or its last lease has ended and nobody has shown yet that it is free |
| `iommu_group` | a device of its IOMMU group, or carried by one, is another holder's, the host's own, or in use |
| `acs`, `slot`, `usb_ports` | the same for what else it shares with others: `ties` has the table |
| `physical_function` | a part of a device (virtual function, mediated device) lives and dies with it: one side only |
| `carried` | functions behind another that is no bridge (a storage controller with disks of its own) go with it |
| `usb_tree` | who resets a controller or a hub takes away what is plugged below |
| `usb_ports` | the two halves of a USB 3 hub or socket are one thing |
| `bridge` | a PCI bridge or a USB root hub carries others and is nobody's |
| `not_physical` | the host itself, and what is neither on PCI nor on USB, cannot be handed out |
| `ordered` | its host is told to make something on it, or to take it away |
| `quarantined` | its host could not take it back |
| `protected` | the host itself lives on it |
| `missing`, `in_use`, `host_stale` | it is not there, used without a lease, or its host's picture is out of date |
| `cordoned`, `tainted`, `unclean`, `kept`, `shared`, `not_shareable` | `restraints` has these |

A functional child (NIC, disk, HBA) stands for its physical parent before any of these are looked at.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final

from leasehold.events import limits
from leasehold.events.capabilities import SetVirtualFunctions
from leasehold.events.identities import (
    COMPUTER,
    DeviceId,
    DeviceKey,
    device_id,
    is_physical,
    physical_key,
    split_device_id,
    uuid_of,
)
from leasehold.events.position import lease_id_text
from leasehold.events.refusals import Blocker, RefusalCode
from leasehold.projections import restraints, ties
from leasehold.projections.domains import all_named, named
from leasehold.projections.rows import DeviceState
from leasehold.projections.state import State
from leasehold.projections.terms import STRANGER, Terms
from leasehold.projections.ties import Tie, carries_others, lineage

_NAMES_USERS: Final = 4
"""From these rules on a refusal tells the hypervisor and the domain, too."""
CODE_OF_RULE: Final = {
    "bridge": RefusalCode.DEVICE_UNLEASABLE,
    "not_physical": RefusalCode.DEVICE_UNLEASABLE,
    "protected": RefusalCode.DEVICE_PROTECTED,
    "missing": RefusalCode.DEVICE_MISSING,
    "host_stale": RefusalCode.HOST_STALE,
    "quarantined": RefusalCode.DEVICE_QUARANTINED,
    "cordoned": RefusalCode.DEVICE_CORDONED,
    "tainted": RefusalCode.DEVICE_TAINTED,
    "not_shareable": RefusalCode.NOT_SHAREABLE,
    "same_device": RefusalCode.DEVICE_HELD,
    "iommu_group": RefusalCode.DEVICE_HELD,
    "acs": RefusalCode.DEVICE_HELD,
    "slot": RefusalCode.DEVICE_HELD,
    "physical_function": RefusalCode.DEVICE_HELD,
    "carried": RefusalCode.DEVICE_HELD,
    "usb_tree": RefusalCode.DEVICE_HELD,
    "usb_ports": RefusalCode.DEVICE_HELD,
    "shared": RefusalCode.DEVICE_SHARED,
    "kept": RefusalCode.DEVICE_KEPT,
    "unclean": RefusalCode.DEVICE_UNCLEAN,
    "in_use": RefusalCode.DEVICE_IN_USE,
    "ordered": RefusalCode.DEVICE_IN_USE,
    "host_not_managed": RefusalCode.HOST_NOT_MANAGED,
    "not_detached": RefusalCode.DEVICE_NOT_DETACHED,
}
"""The refusal that each rule leads to; where several stand in the way, the first one here names it."""


def physical_device(device: DeviceId) -> DeviceId:
    """The device that `device` stands for when it is leased: itself, or the physical parent of a functional child.

    The parent may not be known (yet): then the child cannot be leased, or it would be held apart from its parent.
    """
    host, key = split_device_id(device)
    return device_id(host, physical_key(key))


def descendants(state: State, device: DeviceId) -> Iterator[DeviceId]:
    """The known devices below, breadth first, each once."""
    return ties.below(state, device, state.indexes.children)


def is_unleasable(row: DeviceState) -> bool:
    """Whether it is nobody's, whatever is asked: it carries others, or there is nothing of it to hand out."""
    return carries_others(row) or not is_physical(row.description.key)


def usb_above(state: State, device: DeviceId) -> Iterator[DeviceId]:
    """The hubs and the controller that a USB device hangs on."""
    if state.devices[device].description.kind == "usb_device":
        for above in lineage(state, device):
            yield above
            if above in state.devices and state.devices[above].description.kind == "pci":
                return


def usb_below(state: State, device: DeviceId) -> Iterator[DeviceId]:
    """The USB devices behind a controller or a hub, but not behind another controller."""
    for below in ties.below(state, device, state.indexes.children, but_kind="pci"):
        if state.devices[below].description.kind == "usb_device":
            yield below


def peers_above(state: State, device: DeviceId) -> Iterator[DeviceId]:
    """The other halves of the hubs that a USB device hangs on."""
    if state.devices[device].description.kind == "usb_device":
        for above in usb_above(state, device):
            if above in state.devices:
                yield from ties.peers_of(state, above)


def peers_below(state: State, device: DeviceId) -> Iterator[DeviceId]:
    """The other half of a USB device, or of the socket it is plugged into, and what is plugged below that."""
    for peer in ties.peers_of(state, device):
        yield peer
        yield from usb_below(state, peer)


def physical_function_of(state: State, device: DeviceId) -> Iterator[DeviceId]:
    """What a virtual function, or a mediated device, is a part of, nearest first: the one may be of the other."""
    seen = {device}
    while (row := state.devices.get(device)) is not None and row.description.physical_function:
        device = device_id(row.host, DeviceKey(row.description.physical_function))
        if device in seen:
            return
        seen.add(device)
        yield device


def virtual_functions_of(state: State, device: DeviceId) -> Iterator[DeviceId]:
    """The virtual functions of a physical one and the mediated devices of either, breadth first, each once."""
    return ties.below(state, device, state.indexes.virtual_functions)


def group_mates(state: State, device: DeviceId) -> Iterator[DeviceId]:
    """The other devices of the IOMMU group; bridges in it carry traffic and are nobody's."""
    row = state.devices[device]
    if row.description.iommu_group < 0:
        return
    for mate in state.indexes.groups.get((row.host, row.description.iommu_group), ()):
        if mate != device and not is_unleasable(state.devices[mate]):
            yield mate


def mates(state: State, device: DeviceId, tie: Tie) -> Iterator[DeviceId]:
    """The other devices that share a group, a slot, a bridge or ports with `device`; bridges are nobody's."""
    return group_mates(state, device) if tie[0] == "iommu_group" else ties.mates_of(state, device, tie)


class Around:
    """What stands around the ties of devices that are looked at together: each tie is walked through once, and only as
    far as it is asked for.
    """

    __slots__ = ("_found", "_state")

    def __init__(self, state: State) -> None:
        self._state = state
        self._found: dict[object, _Kept] = {}

    def burdened(self, device: DeviceId, tie: Tie) -> Iterator[tuple[DeviceId, DeviceId]]:
        """Those tied to `device` that are leased, kept, needed by the host or used, each with the mate that carries it.

        To hand out one of a group its members leave the host's drivers, and what resets a slot resets all of it: so a
        mate takes along what it carries (virtual functions, USB devices).
        """
        key = (tie, device) if tie[0] == "slot" else tie  # who shares a slot need not be tied to all in it
        kept = self._found.get(key)
        if kept is None:
            kept = self._found[key] = _Kept(self._walk(device, tie))
        return ((mate, other) for mate, other in kept if mate != device)

    def _walk(self, device: DeviceId, tie: Tie) -> Iterator[tuple[DeviceId, DeviceId]]:
        state = self._state
        members = list(mates(state, device, tie))
        if not members:
            return
        if not is_unleasable(state.devices[device]):
            members.append(device)
            members.sort()
        for mate in members:
            for other in (mate, *virtual_functions_of(state, mate), *usb_below(state, mate)):
                row = state.devices[other]
                if is_taken(state, other, row) or row.description.protections or users_seen(state, row):
                    yield mate, other


def is_taken(state: State, device: DeviceId, row: DeviceState) -> bool:
    """Whether a device is somebody's, or nobody's for now: what is tied to it may not be had."""
    return bool(row.lease or row.quarantine or row.sharers) or device in state.indexes.kept


class _Kept:
    """What an iterator gives, kept as far as it was asked for."""

    __slots__ = ("_found", "_source")

    def __init__(self, source: Iterator[tuple[DeviceId, DeviceId]]) -> None:
        self._source = source
        self._found: list[tuple[DeviceId, DeviceId]] = []

    def __iter__(self) -> Iterator[tuple[DeviceId, DeviceId]]:
        yield from self._found
        for each in self._source:
            self._found.append(each)
            yield each


def _tied(state: State, device: DeviceId, around: Around) -> Iterator[tuple[str, DeviceId]]:
    """What is tied to `device`, or to what carries it, as far as it stands in the way; and by which rule."""
    for tie in ties.ties_of(state, device):
        for _, other in around.burdened(device, tie):
            yield tie[0], other
    description = state.devices[device].description
    if description.physical_function or description.kind == "usb_device":
        yield from _carriers_mates(state, device, around)


def _carriers_mates(state: State, device: DeviceId, around: Around) -> Iterator[tuple[str, DeviceId]]:
    """The mates of what carries `device` (its physical function, its USB controller) that are leased, or else taken,
    and what ties them: what is carried by a member cannot be had while another member is handed out.
    """
    for carrier in (*physical_function_of(state, device), *usb_above(state, device)):
        if carrier in state.devices and not is_unleasable(state.devices[carrier]):
            for tie in ties.ties_of(state, carrier):
                for mate, other in around.burdened(carrier, tie):
                    if mate == other and mate != device and is_taken(state, mate, state.devices[mate]):
                        yield tie[0], mate


Related = Callable[[State, DeviceId], Iterator[DeviceId]]


def _relations(state: State, device: DeviceId, row: DeviceState) -> Iterator[tuple[str, Related, Related]]:
    """Rule, what is above, what is below: of these no two are had apart, not even by one holder in two leases. Those
    that a device has nothing of, as most have not, are left out.
    """
    description, indexes = row.description, state.indexes
    is_usb, carries = description.kind == "usb_device", device in indexes.children
    if description.physical_function or device in indexes.virtual_functions:
        yield "physical_function", physical_function_of, virtual_functions_of
    if is_usb or carries:
        yield "usb_tree", usb_above, usb_below
    if is_usb or device in indexes.peers:
        yield "usb_ports", peers_above, peers_below
    if description.parent or carries:
        yield "carried", ties.functions_above, ties.functions_below


def kin(state: State, device: DeviceId) -> Iterator[DeviceId]:
    """What is not had apart from a known device: its parts, and what it is a part of, or hangs on."""
    for _, above, below in _relations(state, device, state.devices[device]):
        yield from above(state, device)
        yield from below(state, device)


def blockers(
    state: State,
    device: DeviceId,
    *,
    owner: tuple[str, str],
    together: frozenset[DeviceId],
    force: bool,
    around: Around | None = None,
    terms: Terms = STRANGER,
) -> Iterator[Blocker]:
    """Everything that keeps `device` from being leased by `owner` (principal, holder) along with `together`.

    `around`: of the request; what was found there for others of `together` is not looked for again. Who only looks on
    is kept away by nothing.
    """
    if terms.mode == "admin":
        return
    row = state.devices[device]
    yield from _own_blockers(state, device, row, force=force)
    if row.marks is not None or state.hosts[row.host].marks is not None:
        yield from restraints.by_marks(state, device, row, terms)
    if row.lease:
        yield held(state, device, device, "same_device")
    if row.sharers or terms.mode:
        yield from restraints.by_sharing(state, device, row, terms)
    if state.indexes.kept and (queued := restraints.keeper(state, device, terms)):
        yield restraints.kept(state, device, device, queued, "it")
    for rule, above, below in _relations(state, device, row):
        for other in above(state, device):
            # What the host needs of a physical function or a controller, it may need without this part of it.
            yield from _relative_blockers(state, device, other, rule, together=together, force=True, terms=terms)
            # How many virtual functions there are is set through none at all.
            yield from _orders_on(state, device, other, SetVirtualFunctions)
        for other in below(state, device):
            yield from _relative_blockers(state, device, other, rule, together=together, force=force, terms=terms)
            yield from _orders_on(state, device, other)
    around = around or Around(state)
    for rule, other in _tied(state, device, around):
        lease = state.leases.get(state.devices[other].lease)
        if lease is None or (lease.principal, lease.holder) != owner:
            yield from _relative_blockers(
                state, device, other, rule, together=together, force=force, terms=terms, owner=owner
            )


def _relative_blockers(
    state: State,
    device: DeviceId,
    other: DeviceId,
    rule: str,
    *,
    together: frozenset[DeviceId],
    force: bool,
    terms: Terms,
    owner: tuple[str, str] | None = None,
) -> Iterator[Blocker]:
    row = state.devices.get(other)
    if row is None or other in together:
        return
    if row.lease:
        yield held(state, device, other, rule)
    elif row.quarantine is not None:
        why = f"{_apart(state, device, other, rule)}: {other} is in quarantine"
        if not row.quarantine.evidence:
            why = f"{_apart(state, device, other, rule)}: the host of {other} could not take it back"
        yield Blocker(device=device, rule="quarantined", why=why, because_of=other, help=row.quarantine.help)
    elif row.description.protections and not row.missing and not force:
        needs = f"the host itself needs {other} ({', '.join(row.description.protections)})"
        why = f"{_apart(state, device, other, rule)}: {needs}"
        yield Blocker(device=device, rule="protected", why=why, because_of=other, help="choose another device")
    elif row.sharers and not terms.mode and not _all_of(state, row.sharers, owner):
        yield restraints.shared(state, device, other, f"{_apart(state, device, other, rule)}: {other}")
    elif state.indexes.kept and (queued := restraints.keeper(state, other, terms, owner)):
        yield restraints.kept(state, device, other, queued, f"{_apart(state, device, other, rule)}: {other}")
    elif users := users_seen(state, row):
        why = f"{_apart(state, device, other, rule)}: {other} is used by {', '.join(users)}"
        yield Blocker(device=device, rule="in_use", why=why, because_of=other, help="end that use first")


def _all_of(state: State, leases: tuple[int, ...], owner: tuple[str, str] | None) -> bool:
    rows = (state.leases[lease] for lease in leases)
    return all((row.principal, row.holder) == owner for row in rows)


def _own_blockers(state: State, device: DeviceId, row: DeviceState, *, force: bool) -> Iterator[Blocker]:
    if carries_others(row):
        why = "it is a bridge or a root hub: it carries other devices and cannot be handed out"
        yield Blocker(device=device, rule="bridge", why=why, help="lease the devices behind it")
    elif is_unleasable(row):
        yield Blocker(device=device, rule="not_physical", why=why_not_physical(row), help="lease a PCI or USB device")
    if row.description.protections and not force:
        why = f"the host itself needs it: {', '.join(row.description.protections)}"
        yield Blocker(device=device, rule="protected", why=why, help="choose another device, or ask with force")
    if row.quarantine is not None:
        begin = "it is in quarantine" if row.quarantine.evidence else "its host could not take it back"
        why = f"{begin}: {row.quarantine.reason}"
        yield Blocker(device=device, rule="quarantined", why=why, help=row.quarantine.help)
    if row.missing:
        yield Blocker(device=device, rule="missing", why="it is not there", help="plug it in again")
    stale = state.hosts[row.host].stale
    if stale:
        yield restraints.is_stale(device, row.host, stale)
    users = users_of(state, row) if not row.lease and not row.sharers else ()
    if users:
        why = f"used without a lease by {', '.join(users)}"
        yield Blocker(device=device, rule="in_use", why=why, help="end that use first")
    yield from _orders_on(state, device, device)


def users_of(state: State, row: DeviceState) -> tuple[str, ...]:
    """Who has a device: domains to which it is attached, and whoever is seen on the host."""
    if not state.indexes.users:
        return row.description.in_use_by
    return (*named(state, state.attached_to(row)), *row.description.in_use_by)


def users_of_leased(state: State, row: DeviceState) -> list[str]:
    """Hypervisor and name of the domains that have a leased device, else of the one that its lease is for; that one's
    uuid, where it is not there.
    """
    users = state.attached_to(row)[: limits.USERS_TOLD_MAX]
    bond = state.leases[row.lease].bond
    if not users and bond is not None:
        users = [each for each in all_named(state, bond.uuid) if state.domains[each].host == row.host]
        if not users:
            return [f"domain {bond.uuid}"]
    rows = [state.domains[domain].description for domain in users]
    return [f"driver {each.key.partition('/')[0]}, domain {each.name or uuid_of(each.key)}" for each in rows]


def _whose(state: State, row: DeviceState) -> str:
    users = users_of_leased(state, row)
    if not users:
        return ""
    return f", {'used by' if state.attached_to(row) else 'for'} {', '.join(users)}"


def users_seen(state: State, row: DeviceState) -> tuple[str, ...]:
    """As `users_of`; of what is not there nobody is seen on the host, but a domain may hold its place."""
    return tuple(named(state, state.attached_to(row))) if row.missing else users_of(state, row)


def _orders_on(state: State, device: DeviceId, other: DeviceId, kind: type[object] = object) -> Iterator[Blocker]:
    """What its host is told to do to `other`: the same, or a part of it, or, where that takes it away, its whole."""
    which, because_of = ("it", "") if other == device else (other, other)
    for order in state.indexes.orders_on.get(other, ()):
        if not isinstance(state.orders[order].what, kind):
            continue
        why = f"its host is told to make something on {which}, or to take it away, and that is not over (order {order})"
        yield Blocker(
            device=device, rule="ordered", why=why, because_of=because_of, help="wait until the order is over"
        )


def why_not_physical(row: DeviceState) -> str:
    """Why a device that sits on neither bus cannot be handed out."""
    if row.description.key == COMPUTER:
        return "it is the host itself"
    return "it is neither on PCI nor on USB: there is nothing of it to hand out"


def held(state: State, device: DeviceId, other: DeviceId, rule: str) -> Blocker:
    """What says that `device` cannot be had, by `rule`, because `other` (the same, or a relative) is leased."""
    row = state.devices[other]
    lease = state.leases[row.lease]
    name = lease_id_text(row.lease)
    which = "it" if other == device else other
    whose = _whose(state, row) if state.rules_version >= _NAMES_USERS else ""
    if row.ending:
        why = (
            f"{which} is being given back by {lease.holder} ({name}, {lease.ended}) and not known to be free yet{whose}"
        )
        help_text = "wait for the evidence, or let an operator confirm that it is free"
    else:
        why = f"{which} is leased to {lease.holder} ({name}){whose}"
        help_text = "wait for its release or expiry, or ask its holder"
    return Blocker(
        device=device,
        rule=rule,
        why=why if other == device else f"{_apart(state, device, other, rule)}: {why}",
        because_of="" if other == device else other,
        lease=row.lease,
        holder=lease.holder,
        since_ns=row.since_ns,
        since_position=row.since_position,
        help=help_text,
    )


_APART: Final = {
    "iommu_group": "a device of its IOMMU group is not this holder's",
    "physical_function": "a physical function and its virtual functions cannot be owned apart",
    "usb_tree": "a USB controller or hub and what is plugged below cannot be owned apart",
    "usb_ports": "they share USB ports and cannot be owned apart",
    "carried": "a device and the functions behind it cannot be owned apart",
    "acs": "a device that is not kept apart from it by the bridges above is not this holder's",
    "slot": "a function of its slot, which is reset with it, is not this holder's",
}


def _apart(state: State, device: DeviceId, other: DeviceId, rule: str) -> str:
    is_mediated = rule == "physical_function" and "mdev" in (
        state.devices[device].description.kind,
        state.devices[other].description.kind,
    )
    return "a device and its mediated devices cannot be owned apart" if is_mediated else _APART[rule]


def first_blockers(
    state: State,
    devices: tuple[DeviceId, ...],
    *,
    owner: tuple[str, str],
    force: bool,
    terms: Terms = STRANGER,
) -> tuple[Blocker, ...]:
    """What stands in the way of a lease of all `devices`, up to a bound for each, gravest rule first."""
    together = frozenset(devices)
    found: list[Blocker] = []
    around = Around(state)
    for device in devices:
        those = blockers(state, device, owner=owner, together=together, force=force, around=around, terms=terms)
        found += islice(those, limits.BLOCKERS_PER_REFUSAL_MAX)
    return by_gravity(found) if found else ()


def by_gravity(found: list[Blocker]) -> tuple[Blocker, ...]:
    """Blockers up to a bound, those of the gravest rule first."""
    ranks = list(CODE_OF_RULE)
    ordered = sorted(found, key=lambda blocker: (ranks.index(blocker.rule), blocker.device, blocker.because_of))
    return tuple(ordered[: limits.BLOCKERS_PER_REFUSAL_MAX])
