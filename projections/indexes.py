"""What is derived from the rows of a state, so that nothing is searched for: never stored, built anew with them."""

from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

from leasehold.events.capabilities import (
    CreateMdev,
    CreateVport,
    DestroyMdev,
    DestroyVport,
    Mdev,
    Net,
    Order,
    Pci,
    ScsiHost,
    ScsiTarget,
    UsbDevice,
    keys_of,
)
from leasehold.events.devices import DeviceDescription
from leasehold.events.domains import DomainDescription, Use
from leasehold.events.identities import (
    DeviceId,
    DeviceKey,
    DomainId,
    DomainKey,
    HostName,
    Principal,
    device_id,
    is_physical,
    physical_key,
    split_device_id,
    split_domain_id,
    uuid_of,
)
from leasehold.projections.rows import Marks, QueuedState
from leasehold.projections.tables import Journal, Queue, SortedLists, Table

K = TypeVar("K")
M = TypeVar("M", bound=Any)
EVERYBODY: Final = "*"
"""Under this word stand all who wait, whatever they wait for."""


class Indexes:
    """The tables of what is derived. Each change goes through the journal of the rows."""

    DESCRIBED: Final = (
        "lookup", "groups", "children", "virtual_functions", "members", "marks", "hbas", "words", "slots", "peers",
        "on_host",
    )  # fmt: skip
    """Those that follow from descriptions alone."""

    def __init__(self, journal: Journal) -> None:
        self.lookup: Table[str, tuple[DeviceId, ...]] = Table(journal)
        """Key, node-device name or sysfs path -> devices, over all hosts."""
        self.groups: Table[tuple[HostName, int], tuple[DeviceId, ...]] = Table(journal)
        self.children: Table[DeviceId, tuple[DeviceId, ...]] = Table(journal)
        self.virtual_functions: Table[DeviceId, tuple[DeviceId, ...]] = Table(journal)
        self.members: Table[DeviceId, tuple[DeviceId, ...]] = Table(journal)
        """Of a bridge or a bond."""
        self.ending: Table[HostName, tuple[DeviceId, ...]] = Table(journal)
        self.drifting: Table[HostName, tuple[DeviceId, ...]] = Table(journal)
        """Those whose witnesses differ, or did when it was told last."""
        self.freeable: Table[DeviceId, int] = Table(journal)
        self.refusal_prints: Table[str, int] = Table(journal)
        self.refusal_queue: Queue[int] = Queue(journal)
        self.orders: Table[HostName, tuple[int, ...]] = Table(journal)
        """All that are remembered of a host, oldest first."""
        self.open_orders: Table[HostName, tuple[int, ...]] = Table(journal)
        self.orders_on: Table[DeviceId, tuple[int, ...]] = Table(journal)
        """The open ones that are about a device: the parent, what is to be taken away, and what both stand for."""
        self.marks: Table[str, tuple[DeviceId, ...]] = Table(journal)
        """What bears a world wide name, or a UUID on its host."""
        self.ordered_marks: Table[str, tuple[int, ...]] = Table(journal)
        """The open orders to make, or to take away, what bears one."""
        self.hbas: Table[HostName, tuple[DeviceId, ...]] = Table(journal)
        """Those of a host that can have virtual ones."""
        self.words: Table[tuple[HostName, str], tuple[DeviceId, ...]] = Table(journal)
        """What hypervisors may call the devices of a host, but for PCI functions, which they call as we do."""
        self.slots: Table[tuple[HostName, str], tuple[DeviceId, ...]] = Table(journal)
        """PCI functions by slot, where what they share matters: see `ties`."""
        self.peers: Table[DeviceId, tuple[DeviceId, ...]] = Table(journal)
        """What names a USB device as the one at the other half of its socket."""
        self.on_host: Table[HostName, tuple[DeviceId, ...]] = Table(journal)
        """All devices that can be leased, or carry others, on a host."""
        self.marked: Table[HostName, tuple[str, ...]] = Table(journal)
        """What is cordoned or tainted of a host: its name, for the whole of it, and devices."""
        self.evictions: Table[int, int] = Table(journal)
        """When a living lease ends by a taint."""
        self.users: Table[tuple[HostName, str], tuple[DomainId, ...]] = Table(journal)
        """Word of a device -> the domains of its host that use it."""
        self.domains: Table[HostName, tuple[DomainId, ...]] = Table(journal)
        self.domain_names: Table[str, tuple[DomainId, ...]] = Table(journal)
        """Name, uuid or key -> domains, over all hosts."""
        self.bonds: Table[str, tuple[int, ...]] = Table(journal)
        """The living leases that are for the domain of a uuid."""
        self.bonded: Table[HostName, tuple[int, ...]] = Table(journal)
        """The living leases of devices of a host that end with their domains."""
        self.queued: SortedLists[str, tuple[int, int]] = SortedLists(journal)
        """Bucket, or `EVERYBODY` -> the places (rank, position) of who waits under it, first comes first."""
        self.queued_of: SortedLists[Principal, int] = SortedLists(journal)
        """Whose requests wait, by position."""
        self.kept: Table[DeviceId, int] = Table(journal)
        """For which waiting request a device is kept."""
        self.quotas_of: SortedLists[Principal, str] = SortedLists(journal)
        """Of which classes a tenant has quotas."""
        self.quotas_on: SortedLists[str, Principal] = SortedLists(journal)
        """Which tenants have a quota of a class."""
        self.leases_of: SortedLists[Principal, int] = SortedLists(journal)
        """The leases of a tenant that have devices: alone, until all are free; otherwise as long as they live."""
        self.stirs: Queue[int] = Queue(journal)
        """The positions of `State.stirred`, oldest first."""

    def describe(
        self, device: DeviceId, host: HostName, before: DeviceDescription | None, after: DeviceDescription
    ) -> None:
        """Follow a device's new description."""
        if before is not None and _listed(before) == _listed(after):
            return
        old = _entries(device, host, before) if before is not None else []
        new = _entries(device, host, after)
        for entry in old:
            if entry not in new:
                _remove(self._table(entry[0]), entry[1], device)
        for entry in new:
            if entry not in old:
                _insert(self._table(entry[0]), entry[1], device)

    def describe_all(self, devices: Iterable[tuple[DeviceId, HostName, DeviceDescription]]) -> None:
        """What `describe` would make of all these devices, in their order; nothing is described yet."""
        members: dict[str, dict[object, list[DeviceId]]] = {}
        for device, host, description in devices:
            for table, key in _entries(device, host, description):
                members.setdefault(table, {}).setdefault(key, []).append(device)
        for table, lists in members.items():
            self._table(table).update((key, tuple(sorted(some))) for key, some in lists.items())

    def _table(self, name: str) -> Table[object, tuple[DeviceId, ...]]:
        table: Table[object, tuple[DeviceId, ...]] = getattr(self, name)
        return table

    def note_ending(self, host: HostName, device: DeviceId, *, ending: bool) -> None:
        """Follow whether a device waits for evidence."""
        (_insert if ending else _remove)(self.ending, host, device)

    def note_drift(self, host: HostName, device: DeviceId, *, is_in: bool) -> None:
        """Follow whether something is told, or to be told, of how the witnesses of a device differ."""
        members = self.drifting.get(host, ())
        at = bisect_left(members, device)
        if is_in != (at < len(members) and members[at] == device):
            _change(is_in=is_in)(self.drifting, host, device)

    def note_marks(self, host: HostName, target: str, before: Marks | None, after: Marks | None) -> None:
        """Follow whether a host or a device of it is cordoned or tainted."""
        was, now = (marks is not None and bool(marks.cordon or marks.taints) for marks in (before, after))
        if was != now:
            _change(is_in=now)(self.marked, host, target)

    def note_queued(self, queued: int, before: QueuedState | None, after: QueuedState | None) -> None:
        """Follow a waiting request's coming, what is kept for it and under what it is found, and its going."""
        row = after or before
        assert row is not None
        place = (row.rank_ns, queued)
        was = {EVERYBODY, *before.buckets} if before is not None else set()
        now = {EVERYBODY, *after.buckets} if after is not None else set()
        for bucket in sorted(was - now):
            self.queued.remove(bucket, place)
        for bucket in sorted(now - was):
            self.queued.add(bucket, place)
        if before is None:
            self.queued_of.add(row.principal, queued)
        elif after is None:
            self.queued_of.remove(row.principal, queued)
        keeps_before, keeps = before.keeps if before is not None else (), after.keeps if after is not None else ()
        for device in keeps_before:
            if device not in keeps:
                self.kept.drop(device)
        for device in keeps:
            if device not in keeps_before:
                assert device not in self.kept, f"{device} is kept for somebody else"
                self.kept.put(device, queued)

    def list_order(self, order: int, host: HostName) -> None:
        """An order is remembered from here on."""
        _insert(self.orders, host, order)

    def unlist_order(self, order: int, host: HostName) -> None:
        """An order is forgotten."""
        _remove(self.orders, host, order)

    def note_open(self, order: int, host: HostName, what: Order, *, is_open: bool) -> None:
        """Follow whether an order's outcome is awaited."""
        change = _change(is_in=is_open)
        change(self.open_orders, host, order)
        for device in held_up_by(host, what):
            change(self.orders_on, device, order)
        for mark in dict.fromkeys(marks_of(host, what)):
            change(self.ordered_marks, mark, order)

    def name_domain(self, domain: DomainId, before: DomainDescription | None, after: DomainDescription | None) -> None:
        """Follow a domain's coming, its other name, or its going (`after` is `None`)."""
        if before is None or after is None:
            _change(is_in=after is not None)(self.domains, split_domain_id(domain)[0], domain)
        elif before.name == after.name:
            return
        # It may be called as its uuid or key is, which stay when it is called otherwise.
        was = names_of_domain(before.key, before.name) if before is not None else frozenset()
        now = names_of_domain(after.key, after.name) if after is not None else frozenset()
        for name in sorted(was - now):
            _remove(self.domain_names, name, domain)
        for name in sorted(now - was):
            _insert(self.domain_names, name, domain)

    def note_uses(self, domain: DomainId, before: tuple[Use, ...], after: tuple[Use, ...]) -> list[str]:
        """Follow what a domain uses; the words of all devices that it uses otherwise than before."""
        if before == after:
            return []
        was, now = set(before), set(after)
        changed = {use.device for use in sorted(was ^ now)}
        words_before, words_after = {use.device for use in was}, {use.device for use in now}
        host, _ = split_domain_id(domain)
        for word in sorted(changed):
            if (word in words_before) != (word in words_after):
                _change(is_in=word in words_after)(self.users, (host, word), domain)
        return sorted(changed)

    def note_bond(self, lease: int, uuid: str, hosts: Iterable[HostName], *, is_living: bool) -> None:
        """Follow whether a lease that is for a domain lives. `hosts`: none if the lease does not end with it."""
        change = _change(is_in=is_living)
        change(self.bonds, uuid, lease)
        for host in hosts:
            change(self.bonded, host, lease)


def names_of_domain(key: DomainKey, name: str) -> frozenset[str]:
    """By what a domain is found, beside its id: its key, its uuid, and its name if it has one."""
    return frozenset((key, uuid_of(key), name)) - {""}


def _entries(device: DeviceId, host: HostName, description: DeviceDescription) -> list[tuple[str, object]]:
    """Under which key of which table the device stands; each once."""
    texts = (description.key, description.name, description.sysfs_path)
    entries: list[tuple[str, object]] = [("lookup", text) for text in dict.fromkeys(texts) if text]
    if is_physical(description.key) and physical_key(description.key) == description.key:
        entries.append(("on_host", host))
    if description.iommu_group >= 0:
        entries.append(("groups", (host, description.iommu_group)))
    if description.parent:
        entries.append(("children", device_id(host, DeviceKey(description.parent))))
    if description.physical_function:
        entries.append(("virtual_functions", device_id(host, DeviceKey(description.physical_function))))
    match description.capability:
        case Net(master=master) if master:
            entries.append(("members", device_id(host, DeviceKey(master))))
        case ScsiHost(fc_host=port, vport_ops=ops):
            names = (port.wwnn, port.wwpn) if port is not None else ()
            entries += (("marks", mark_of_wwn(name)) for name in dict.fromkeys(names) if name)
            if ops is not None:
                entries.append(("hbas", host))
        case ScsiTarget(remote_wwpn=name) if name:
            entries.append(("marks", mark_of_wwn(name)))
        case Mdev(uuid=uuid):
            entries.append(("marks", mark_of_uuid(host, uuid)))
        case UsbDevice(peer=peer) if peer:
            entries.append(("peers", device_id(host, DeviceKey(peer))))
        case Pci() if _slot_counts(description):
            entries.append(("slots", (host, slot_of(description))))
    if description.kind != "pci":
        entries += (("words", (host, word)) for word in words_of(description))
    return entries


def _listed(description: DeviceDescription) -> tuple[object, ...]:
    """All that the entries of a device, which has one key, are made of."""
    capability = description.capability
    return (
        description.name,
        description.sysfs_path,
        description.iommu_group,
        description.parent,
        description.physical_function,
        description.kind,
        description.vendor_id,
        description.product_id,
        capability if isinstance(capability, Net | ScsiHost | ScsiTarget | Mdev | UsbDevice) else None,
        _slot_counts(description),
    )


def made_of(description: DeviceDescription) -> tuple[object, ...]:
    """What decides, of a device, which others cannot be owned apart from it."""
    capability = description.capability
    return (
        description.iommu_group,
        description.parent,
        description.physical_function,
        description.pci_class,
        description.bridge,
        description.hub,
        capability.peer if isinstance(capability, UsbDevice) else "",
        (capability.isolation, capability.resets) if isinstance(capability, Pci) else None,
    )


COMPANIONS: Final = frozenset({0x0C0300, 0x0C0310, 0x0C0320})
"""UHCI, OHCI, EHCI: in one slot they have the same sockets, and each device goes to the one that is fast enough."""
_OPEN: Final = frozenset({"conventional", "no_acs"})


def slot_of(description: DeviceDescription) -> str:
    """The slot of a PCI function, with its bus: its key without the number of the function."""
    return description.key.rpartition(".")[0]


def tells_resets(description: DeviceDescription) -> bool:
    """Whether it is a function of which an agent tells that knows what they share: earlier ones told no resets."""
    capability = description.capability
    return description.kind == "pci" and isinstance(capability, Pci) and capability.resets is not None


def is_open(description: DeviceDescription) -> bool:
    """Whether it is a bridge behind which devices reach each other."""
    capability = description.capability
    return description.bridge and isinstance(capability, Pci) and capability.isolation in _OPEN


def _slot_counts(description: DeviceDescription) -> bool:
    if not tells_resets(description):
        return False
    is_alone = description.iommu_group >= 0 or bool(description.physical_function)
    return not is_alone or description.pci_class in COMPANIONS or is_open(description)


def words_of(description: DeviceDescription) -> tuple[str, ...]:
    """Whatever a hypervisor may call this device: words of `events.domains`, each once."""
    if description.kind == "pci":
        return (description.key,)
    capability = description.capability
    if description.kind == "usb_device":
        words = []
        port = description.sysfs_path.rpartition("/")[2]
        if port:
            words.append(f"usb-port/{port}")
        if isinstance(capability, UsbDevice) and capability.bus > 0 and capability.device > 0:
            words.append(f"usb-address/{capability.bus}.{capability.device}")
        if description.vendor_id and description.product_id:
            words.append(f"usb-id/{description.vendor_id.lower()}:{description.product_id.lower()}")
        return tuple(words)
    return (f"mdev/{capability.uuid.lower()}",) if isinstance(capability, Mdev) else ()


def devices_of(host: HostName, order: Order) -> tuple[DeviceId, ...]:
    """The devices that an order is about: what is to be taken away, and the parent."""
    return tuple(device_id(host, key) for key in keys_of(order))


def held_up_by(host: HostName, order: Order) -> tuple[DeviceId, ...]:
    """What nobody is to be given while the order is open."""
    devices = devices_of(host, order)
    physical = (device_id(host, physical_key(split_device_id(device)[1])) for device in devices)
    return tuple(dict.fromkeys((*devices, *physical)))


def mark_of_wwn(wwn: str) -> str:
    """Under what bearers of a world wide name are found."""
    return f"wwn {wwn}"


def mark_of_uuid(host: HostName, uuid: str) -> str:
    """Under what the bearer of a UUID is found on its host."""
    return f"uuid {host} {uuid}"


def marks_of(host: HostName, order: Order) -> tuple[str, ...]:
    """What the device bears that is to be made or taken away. Node names are shared by the ports of an HBA."""
    match order:
        case CreateVport():
            return mark_of_wwn(order.wwpn), mark_of_wwn(order.wwnn)
        case DestroyVport():
            return (mark_of_wwn(order.wwpn),)
        case CreateMdev() | DestroyMdev():
            return (mark_of_uuid(host, order.uuid),)
        case _:
            return ()


def _change(*, is_in: bool) -> Callable[[Table[Any, tuple[Any, ...]], Any, Any], None]:
    return _insert if is_in else _remove


def _insert(table: Table[K, tuple[M, ...]], key: K, member: M) -> None:
    members: tuple[M, ...] = table.get(key, ())
    at: int = bisect_left(members, member)
    if at == len(members) or members[at] != member:
        table.put(key, (*members[:at], member, *members[at:]))


def _remove(table: Table[K, tuple[M, ...]], key: K, gone: M) -> None:
    members = tuple(member for member in table[key] if member != gone)
    if members:
        table.put(key, members)
    else:
        table.drop(key)
