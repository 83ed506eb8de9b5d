"""The state as people see it: one word for each device, computed from its three axes (lease, host, health)."""

from typing import Final

from leasehold.events.identities import DeviceId, HostName, Principal, split_domain_id, uuid_of
from leasehold.events.position import lease_id_text
from leasehold.events.views import DeviceView, HostView, LeaseView
from leasehold.projections import bindings, conflicts, domains, evictions, nodedev
from leasehold.projections.answers import lease_word
from leasehold.projections.reporting import Picture
from leasehold.projections.rows import DeviceState, taints_of
from leasehold.projections.sharing import shared
from leasehold.projections.state import State
from leasehold.projections.ties import carries_others

SHARED_SHOWN_MAX: Final = 4


def device_word(state: State, device: DeviceId) -> tuple[str, str]:
    """The state of a device in one word, and the reason in a sentence (empty for a free one)."""
    physical = conflicts.physical_device(device)
    row = state.devices.get(physical)
    if row is None:
        return "unleasable", f"it stands for {physical}, which is not known"
    if row.quarantine is not None and (row.ending or not row.lease):
        return "quarantined", f"{row.quarantine.reason}; {row.quarantine.help}"
    if row.sharers:
        return "shared", _sharers_text(state, row)
    if row.lease:
        word, reason = _held_word(state, row)
        notes = (_misused_text(state, row), _shared_text(state, physical), _evicted_text(state, row.lease))
        return word, "; it ".join((reason, *(note for note in notes if note)))
    if row.missing or state.devices[device].missing:
        return "missing", "it is not there"
    if carries_others(row):
        return "unleasable", "a bridge or a root hub: it carries other devices"
    if conflicts.is_unleasable(row):
        return "unleasable", conflicts.why_not_physical(row)
    protections = state.devices[device].description.protections or row.description.protections
    if protections:
        return "protected", ", ".join(protections)
    users = conflicts.users_of(state, row)
    if users:
        return "foreign", f"used without a lease by {', '.join(users)}"
    stale = state.hosts[row.host].stale
    if stale:
        return "stale", f"what is known of {row.host} may be out of date ({stale})"
    return _related_word(state, physical)


def _held_word(state: State, row: DeviceState) -> tuple[str, str]:
    lease = state.leases[row.lease]
    name = lease_id_text(row.lease)
    if row.ending:
        return "ending", f"lease {name} of {lease.holder} was ended ({lease.ended}); not known to be free yet"
    if row.missing:
        return "lost", f"leased to {lease.holder} ({name}), but it is not there"
    if row.displaced:
        return "lost", f"leased to {lease.holder} ({name}), but another thing sits there now"
    return "leased", f"leased to {lease.holder} ({name})"


def _misused_text(state: State, row: DeviceState) -> str:
    """Which domain has a device that is leased for another one; mostly empty."""
    others = [
        domain
        for domain in state.attached_to(row)
        if not domains.may_use(state, row.lease, uuid_of(split_domain_id(domain)[1]))
    ]
    if not others or row.ending:
        return ""
    return f"is attached to {', '.join(domains.named(state, others))}, for which it was not leased"


def _shared_text(state: State, device: DeviceId) -> str:
    """With what a leased device has come to be shared; mostly empty."""
    others = [f"{each.because_of} ({each.holder}, {lease_id_text(each.lease)})" for each in shared(state, device)]
    if not others:
        return ""
    more = f" and {len(others) - SHARED_SHOWN_MAX} more" if len(others) > SHARED_SHOWN_MAX else ""
    return f"cannot be owned apart from {', '.join(others[:SHARED_SHOWN_MAX])}{more}, which another lease holds"


def _sharers_text(state: State, row: DeviceState) -> str:
    """Who shares a device, and how many more could."""
    some = [f"{state.leases[lease].holder} ({lease_id_text(lease)})" for lease in row.sharers[:SHARED_SHOWN_MAX]]
    more = f" and {len(row.sharers) - SHARED_SHOWN_MAX} more" if len(row.sharers) > SHARED_SHOWN_MAX else ""
    at_most = row.marks.policy.share_max if row.marks is not None and row.marks.policy is not None else 1
    notes = (f"shared by {', '.join(some)}{more}: {len(row.sharers)} of {at_most}", _evicted_text(state, *row.sharers))
    return "; it ".join(note for note in notes if note)


def _evicted_text(state: State, *leases: int) -> str:
    """By which taint the first of these leases ends that does; mostly empty."""
    due = min((lease for lease in leases if lease in state.indexes.evictions), default=0)
    mark = evictions.first_mark(state, state.leases[due]) if due else None
    which = f" by {lease_id_text(due)}" if len(leases) > 1 else ""
    return f"is to be given up{which} ({mark.by}: {evictions.why_of(mark)})" if mark else ""


_OWN_WORDS: Final = frozenset({"quarantined", "cordoned", "tainted", "unclean", "kept"})
"""Rules that are words of their own where a device itself is meant; by what it is tied to, it is blocked."""


def _related_word(state: State, device: DeviceId) -> tuple[str, str]:
    """A device that is free by itself may still be kept by what was said of it, or by what it is tied to."""
    found = conflicts.first_blockers(state, (device,), owner=("", ""), force=False)
    if not found:
        return "free", ""
    rule, why = found[0].rule, found[0].why
    if rule == "protected" or (rule in _OWN_WORDS and not found[0].because_of):
        return rule, why
    return "blocked", why


def device_view(state: State, device: DeviceId) -> DeviceView:
    """One device."""
    row = state.devices[device]
    description = row.description
    word, reason = device_word(state, device)
    held = state.devices.get(conflicts.physical_device(device), row)
    return DeviceView(
        name=description.name,
        key=description.key,
        host=row.host,
        parent=description.parent,
        driver=description.driver,
        state=word,
        reason=reason,
        kind=description.kind,
        device=device,
        lease=lease_id_text(held.lease) if held.lease else "",
        holder=state.leases[held.lease].holder if held.lease else "",
        since_ns=held.since_ns,
        pci_class=f"{description.pci_class:06x}" if description.pci_class >= 0 else "",
        vendor_id=description.vendor_id,
        product_id=description.product_id,
        vendor_name=description.vendor_name,
        product_name=description.product_name,
        serial=description.serial,
        iommu_group=description.iommu_group,
        numa_node=description.numa_node,
        physical_function=description.physical_function,
        sysfs_path=description.sysfs_path,
        in_use_by=description.in_use_by,
        attributes=description.attributes,
        subsystem=description.subsystem,
        devnodes=description.devnodes,
        capability=description.capability,
        capabilities=nodedev.capability_types(description),
        bus=nodedev.bus_of(description),
        parent_name=nodedev.parent_name(state, row),
        virtual_functions=nodedev.virtual_functions(state, device),
        group_members=nodedev.group_members(state, row),
        members=nodedev.members(state, device),
        master=nodedev.master(state, row),
        lower=nodedev.lower(state, row),
        used_by=domains.user_views(state, held),
        flaps=row.flaps,
        binding=bindings.binding_view(state, held),
        drift=held.drift.kind if held.drift is not None else "",
    )


def lease_view(state: State, lease: int, *, asker: Principal) -> LeaseView:
    """One lease; its token only for the principal it belongs to."""
    row = state.leases[lease]
    lost = [device for device in row.devices if device_word(state, device)[0] == "lost"] if not row.ended else []
    reasons = [row.end_reason] if row.end_reason else []
    reasons += [f"lost: {', '.join(lost)}"] if lost else []
    evicted = evictions.first_mark(state, row)
    reasons += [f"it ends by a word of {evicted.by}: {evictions.why_of(evicted)}"] if evicted else []
    if not row.ended:
        texts = ((device, _shared_text(state, device)) for device in row.devices)
        reasons += [f"{device} {text}" for device, text in texts if text][:SHARED_SHOWN_MAX]
    return LeaseView(
        lease=lease_id_text(lease),
        token=row.token if row.principal == asker else 0,
        holder=row.holder,
        devices=row.devices,
        principal=row.principal,
        state="lost" if lost else lease_word(row),
        ended=row.ended,
        granted_at_ns=row.granted_at_ns,
        expires_at_ns=0 if row.domain_seen else row.expires_at_ns,
        ttl_ms=row.ttl_ms,
        reason="; ".join(reasons),
        domain=row.bond.uuid if row.bond is not None else "",
        gone_ms=row.bond.gone_ms if row.bond is not None and row.is_bound else -1,
        gone_since_ns=row.gone_since_ns,
        prepared=bindings.prepared_word(state, row),
        evicts_at_ns=state.indexes.evictions.get(lease, 0),
        mode=row.mode,
        reserved_for=lease_id_text(row.reserved_for) if row.reserved_for else "",
    )


def host_view(state: State, host: HostName) -> HostView:
    """One host."""
    row = state.hosts[host]
    cordon = row.marks.cordon if row.marks is not None else None
    return HostView(
        host=host,
        mode=row.mode,
        stale=row.stale,
        devices=row.device_count,
        cordoned=f"{cordon.by}: {cordon.reason}" if cordon is not None else "",
        taints=tuple(map(evictions.text_of, taints_of(row.marks))),
    )


def picture_of(state: State, host: HostName) -> Picture:
    """What the log knows to be there on a host."""
    prefix = f"{host}/"
    return {
        row.description.key: row.description
        for device, row in state.devices.items()
        if device.startswith(prefix) and not row.missing
    }
