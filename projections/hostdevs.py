"""Deciding on what is asked for whole domains, leases and hosts: prepare, reattach, revoke, declare dead."""

from collections.abc import Iterator
from itertools import islice
from typing import Final

from leasehold.events import event_types, identities, inputs, limits
from leasehold.events.errors import InvalidInputError
from leasehold.events.event_types import Event, LeaseGranted
from leasehold.events.hostdev_events import HostDeclaredDead, LeaseRevoked
from leasehold.events.identities import DeviceId, DomainId, HostName, RequestRef, split_device_id, tenant_of, uuid_of
from leasehold.events.position import lease_id_text, queued_id_text
from leasehold.events.refusals import RefusalCode
from leasehold.projections import conflicts, domains
from leasehold.projections.declining import Declined, declined
from leasehold.projections.granting import grant
from leasehold.projections.rows import LeaseState
from leasehold.projections.state import State
from leasehold.projections.terms import Terms, rank_ns

_REVOKES_WAITING: Final = 5
"""From these rules on a request that waits is taken away like a lease."""
_LIST_DOMAINS: Final = "list the domains"


# --- prepare ------------------------------------------------------------------------------------------------------


def prepare(state: State, ref: RequestRef, request: inputs.PrepareRequest, now_ns: int) -> LeaseGranted | Declined:
    """A lease of all that a domain's configuration claims, or that it has, but for what it has leases of already."""
    found = [
        domain
        for domain in domains.all_named(state, request.domain)
        if request.host in ("", state.domains[domain].host)
    ]
    if len(found) != 1:
        return _not_one(request.domain, found)
    domain = found[0]
    uuid = uuid_of(state.domains[domain].description.key)
    wanted = _claimed(state, domain, uuid, request.bus)
    if isinstance(wanted, Declined):
        return wanted
    if not wanted:
        bus = f"{request.bus.upper()} " if request.bus else ""
        text = f"{domain} claims no {bus}devices that are not leased for it already"
        help_text = "configure some for it, and see that the host's poller has seen them"
        return declined((domain,), RefusalCode.NOTHING_TO_PREPARE, text, help_text)
    if len(wanted) > limits.DEVICES_PER_LEASE_MAX:
        text = f"{domain} claims {len(wanted)} devices; a lease has at most {limits.DEVICES_PER_LEASE_MAX}"
        help_text = "prepare those of one bus, or lease them by name"
        return declined((domain,), RefusalCode.DEVICES_TOO_MANY, text, help_text)
    terms = Terms(tenant=tenant_of(ref.principal), rank_ns=rank_ns(now_ns, 0))
    return grant(state, ref, request, tuple(sorted(wanted)), uuid=uuid, now_ns=now_ns, terms=terms)


def _not_one(text: str, found: list[DomainId]) -> Declined:
    if not found:
        return declined((text,), RefusalCode.DOMAIN_UNKNOWN, f"no domain {text} is known", _LIST_DOMAINS)
    some = ", ".join(found[: limits.CANDIDATES_PER_REFUSAL_MAX])
    return declined((text,), RefusalCode.DOMAIN_AMBIGUOUS, f"{text} could be {some}", "name one of these")


def _claimed(state: State, domain: DomainId, uuid: str, bus: str) -> set[DeviceId] | Declined:
    """The physical devices of one bus, or of both, that a domain uses and that no lease holds for it yet."""
    host = state.domains[domain].host
    wanted: set[DeviceId] = set()
    for word in dict.fromkeys(use.device for use in state.domains[domain].uses):
        if bus and _bus_of_word(word) not in ("", bus):
            continue
        meant = _meant(state, host, word)
        if any(_is_leased_for(state, device, uuid) for device in meant):
            continue
        if len(meant) != 1:
            return _not_one_device(domain, word, meant)
        if bus in ("", _bus_of(meant[0])):
            wanted.add(meant[0])
    return wanted


def _meant(state: State, host: HostName, word: str) -> list[DeviceId]:
    """The physical devices that a hypervisor means by a word: those that are there, if any is."""
    named = [device for device in state.named(host, word) if conflicts.physical_device(device) in state.devices]
    there = [device for device in named if not state.devices[device].missing] or named
    return list(dict.fromkeys(conflicts.physical_device(device) for device in there))


def _is_leased_for(state: State, device: DeviceId, uuid: str) -> bool:
    lease = state.leases.get(state.devices[device].lease)
    return lease is not None and not lease.ended and lease.bond is not None and lease.bond.uuid == uuid


def _not_one_device(domain: DomainId, word: str, meant: list[DeviceId]) -> Declined:
    if not meant:
        text = f"{domain} claims {word}, and no such device is known"
        return declined((domain,), RefusalCode.DEVICE_UNKNOWN, text, "plug it in, or change the domain's configuration")
    some = ", ".join(meant[: limits.CANDIDATES_PER_REFUSAL_MAX])
    text = f"Multiple USB devices for {word.removeprefix('usb-id/')}: {domain} could have {some}"
    help_text = "say in its configuration which one, by address or port; or lease one of these for it by name"
    return declined((domain,), RefusalCode.DEVICE_AMBIGUOUS, text, help_text)


def _bus_of_word(word: str) -> str:
    """The bus that a hypervisor's word is about; empty: it does not say (a mediated device)."""
    kind = word.partition("/")[0]
    return "usb" if kind.startswith("usb-") else kind if kind == "pci" else ""


def _bus_of(device: DeviceId) -> str:
    return split_device_id(device)[1].partition("/")[0]


# --- reattach -----------------------------------------------------------------------------------------------------


def reattach(state: State, ref: RequestRef, request: inputs.ReattachRequest) -> list[int] | Declined:
    """The asker's living leases that are for a domain, the oldest ones: these are to be released."""
    uuid = _uuid_of_text(state, request.domain, request.host)
    if isinstance(uuid, Declined):
        return uuid
    found: list[int] = []
    for lease in state.indexes.bonds.get(uuid, ()):
        row = state.leases[lease]
        if row.principal != ref.principal or (request.host and HostName(request.host) not in row.hosts):
            continue
        buses = {_bus_of(device) for device in row.devices}
        if request.bus and buses == {"pci", "usb"}:
            text = f"lease {lease_id_text(lease)} holds devices of both buses, and ends as a whole"
            help_text = "reattach without naming a bus"
            return declined((lease_id_text(lease),), RefusalCode.LEASE_OF_BOTH_BUSES, text, help_text)
        if request.bus in ("", *buses):
            found.append(lease)
    if not found:
        whose = f"{ref.principal} has no lease for the domain {request.domain}"
        text = f"{whose} with {request.bus.upper()} devices" if request.bus else whose
        return declined((request.domain,), RefusalCode.NOTHING_TO_REATTACH, text, "list your leases")
    return found[: limits.LEASES_REATTACHED_MAX]


def _uuid_of_text(state: State, text: str, host: str) -> str | Declined:
    try:
        return identities.parse_uuid(text)
    except InvalidInputError:
        pass
    found = [each for each in domains.all_named(state, text) if host in ("", state.domains[each].host)]
    uuids = list(dict.fromkeys(uuid_of(state.domains[each].description.key) for each in found))
    return uuids[0] if len(uuids) == 1 else _not_one(text, found)


def released(state: State, ref: RequestRef, leases: list[int]) -> list[Event]:
    """The ends of these leases, and at once the freeing of what is known to be unused, as far as a record has room."""
    events: list[Event] = [event_types.LeaseReleased(request=ref, lease=lease) for lease in leases]
    room = limits.EVENTS_PER_RECORD_MAX - len(events)
    return [*events, *islice(_freed(state, leases), room)]


def _freed(state: State, leases: list[int]) -> Iterator[Event]:
    for lease in leases:
        for device in state.leases[lease].devices:
            evidence = state.evidence_of_free(state.devices[device])
            if evidence:
                yield event_types.DeviceFreed(device=device, lease=lease, evidence=evidence)


# --- operators ----------------------------------------------------------------------------------------------------


def revoke(state: State, ref: RequestRef, request: inputs.RevokeRequest) -> LeaseRevoked | Declined:
    """The end of a lease, whoever holds it; by force also that of one which has ended, and which its host's binder has
    not taken back yet: that domains lose what they still have of it.
    """
    lease, name = state.leases.get(request.lease), lease_id_text(request.lease)
    if lease is None:
        text = f"no lease {name} is known"
        if state.rules_version >= _REVOKES_WAITING:
            text += f", and nobody waits at {queued_id_text(request.lease)}"
        return declined((name,), RefusalCode.LEASE_UNKNOWN, text, "list the leases")
    if lease.ended and not (request.force and _may_be_forced(state, request.lease, lease)):
        text = f"lease {name} was ended ({lease.ended})"
        if lease.is_forced_off:
            text += ", and its devices are being taken by force"
        help_text = "what a domain still has of it comes back when that domain lets go, or is stopped"
        return declined((name,), RefusalCode.LEASE_ENDED, text, help_text)
    return LeaseRevoked(request=ref, lease=request.lease, reason=request.reason, force=request.force)


def _may_be_forced(state: State, number: int, lease: LeaseState) -> bool:
    """Whether a lease that has ended holds devices that a binder could take by force, and has not been told to."""
    rows = (state.devices[device] for device in lease.devices if device in state.devices)
    return not lease.is_forced_off and any(
        row.lease == number and state.hosts[row.host].mode == "managed" for row in rows
    )


def declare_dead(state: State, ref: RequestRef, request: inputs.DeclareDeadRequest) -> HostDeclaredDead | Declined:
    """That nothing acts on a host any more, if none of its agents is heard."""
    host = HostName(request.host)
    row = state.hosts.get(host)
    if row is None:
        return declined((host,), RefusalCode.AGENT_UNKNOWN, f"no host {host} is known", "list the hosts")
    heard = sorted(agent for agent, source in row.sources.items() if not source.stale)
    if heard:
        text = f"{', '.join(heard)} on {host} {'is' if len(heard) == 1 else 'are'} heard"
        help_text = "switch it off first; one that has gone without a word is known to have after a while"
        return declined((host,), RefusalCode.HOST_ALIVE, text, help_text)
    return HostDeclaredDead(request=ref, host=host, reason=request.reason)
