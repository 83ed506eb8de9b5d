"""Domains: what events make of them, and how they are shown. What agents say of them is judged in `domainwords`."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Final

import msgspec

from leasehold.events import event_types, identities, limits
from leasehold.events.domains import SeenDomain, Use
from leasehold.events.errors import InvalidInputError
from leasehold.events.identities import DomainId, HostName, domain_id, split_domain_id, uuid_of
from leasehold.events.inputs import BINDER
from leasehold.events.position import lease_id_text
from leasehold.events.views import DomainView, UsedView, UserView
from leasehold.projections import bonds, remembering
from leasehold.projections.rows import AnswerState, DeviceState, DomainState
from leasehold.projections.state import State

_replace: Final = msgspec.structs.replace


# --- folding ------------------------------------------------------------------------------------------------------


def appeared(state: State, position: int, at_ns: int, event: event_types.DomainAppeared) -> None:
    """A domain is known from here on."""
    domain = domain_id(event.host, event.domain.key)
    assert event.host in state.hosts, f"host {event.host} is not known"
    assert domain not in state.domains, f"{domain} is known already"
    row = DomainState(
        host=event.host, agent=event.agent, description=event.domain, since_position=position, since_ns=at_ns
    )
    state.put_domain(domain, row)
    bonds.look_at_domain(state, uuid_of(event.domain.key), at_ns)


def changed(state: State, _position: int, at_ns: int, event: event_types.DomainChanged) -> None:
    """It is otherwise."""
    domain = domain_id(event.host, event.domain.key)
    state.put_domain(domain, _replace(state.domains[domain], description=event.domain))
    bonds.look_at_domain(state, uuid_of(event.domain.key), at_ns)


def started(state: State, position: int, at_ns: int, event: event_types.DomainStarted) -> None:
    """It runs anew."""
    domain = domain_id(event.host, event.domain.key)
    before = state.domains[domain]
    state.put_domain(domain, _replace(before, description=event.domain, since_position=position, since_ns=at_ns))
    bonds.look_at_domain(state, uuid_of(event.domain.key), at_ns)


def vanished(state: State, _position: int, at_ns: int, event: event_types.DomainVanished) -> None:
    """It is not known any more."""
    domain = domain_id(event.host, event.key)
    uses = state.domains[domain].uses
    assert not uses, f"{domain} still uses {uses[0].device}"
    state.drop_domain(domain)
    bonds.look_at_domain(state, uuid_of(event.key), at_ns)


def attachment_seen(state: State, position: int, _at_ns: int, event: event_types.AttachmentSeen) -> None:
    """It uses a device."""
    domain = domain_id(event.host, event.domain)
    row, use = state.domains[domain], Use(event.device, event.use)
    assert use not in row.uses, f"that {domain} uses {use.device} is known already"
    at = bisect_left(row.uses, use)
    uses = (*row.uses[:at], use, *row.uses[at:])
    since = (*row.used_since[:at], position, *row.used_since[at:])
    state.put_domain(domain, _replace(row, uses=uses, used_since=since))


def attachment_gone(state: State, _position: int, _at_ns: int, event: event_types.AttachmentGone) -> None:
    """It uses a device no more."""
    domain = domain_id(event.host, event.domain)
    row, use = state.domains[domain], Use(event.device, event.use)
    assert use in row.uses, f"that {domain} uses {use.device} is not known"
    at = row.uses.index(use)
    uses, since = row.uses, row.used_since
    after = _replace(row, uses=uses[:at] + uses[at + 1 :], used_since=since[:at] + since[at + 1 :])
    state.put_domain(domain, after)


def agent_retired(state: State, position: int, at_ns: int, event: event_types.AgentRetired) -> None:
    """An agent is forgotten, with the domains that it told of: nobody says any more that they are there."""
    ref, host = event.request, state.hosts[event.host]
    assert event.agent in host.sources, f"there is no {event.agent} on {event.host}"
    after = _replace(host, sources={agent: each for agent, each in host.sources.items() if agent != event.agent})
    if event.agent == BINDER:
        # Nobody hands over there any more: who looks is believed, as on any host that is only watched.
        after = _replace(after, mode="watched")
    if after.dead and after.has_reported:
        after = _replace(after, dead="")
    # First the host: that nobody looks any more is not to be taken for the domains' being gone.
    bonds.put_host(state, at_ns, event.host, after)
    told = [each for each in state.indexes.domains.get(event.host, ()) if state.domains[each].agent == event.agent]
    for domain in told:
        state.drop_domain(domain)
        bonds.look_at_domain(state, uuid_of(split_domain_id(domain)[1]), at_ns)
    answer = AnswerState(body_hash=ref.body_hash, verb="retire_agent", position=position, issued_at_ns=ref.issued_at_ns)
    remembering.remember_ended(state, at_ns, ref, answer)


# --- reading ------------------------------------------------------------------------------------------------------


def seen_domains(state: State, host: HostName, agent: str) -> list[SeenDomain]:
    """What `agent` has told of the domains of a host, in the order of their keys."""
    rows = [state.domains[domain] for domain in state.indexes.domains.get(host, ())]
    return [SeenDomain(row.description, row.uses) for row in rows if row.agent == agent]


def user_views(state: State, device: DeviceState) -> tuple[UserView, ...]:
    """Who uses a device, those that have it first; at most `limits.USERS_SHOWN_MAX`."""
    users = sorted(state.users_of(device), key=lambda each: (each[1].use, each[0], each[1].device))
    return tuple(
        UserView(domain=domain, name=state.domains[domain].description.name, use=use.use, said=use.device)
        for domain, use in users[: limits.USERS_SHOWN_MAX]
    )


def named(state: State, domains: Sequence[DomainId]) -> list[str]:
    """Domains as people are told of them: the first ones, and how many there are more."""
    names = []
    for domain in domains[: limits.USERS_TOLD_MAX]:
        name = state.domains[domain].description.name
        names.append(f"domain {name} ({domain})" if name else f"domain {domain}")
    more = len(domains) - limits.USERS_TOLD_MAX
    return [*names, f"{more} more domains"] if more > 0 else names


def domain_view(state: State, domain: DomainId) -> DomainView:
    """One domain, which must be known."""
    row = state.domains[domain]
    description = row.description
    hypervisor, _, uuid = description.key.partition("/")
    uses: list[UsedView] = []
    room = limits.DEVICES_MEANT_PER_MESSAGE_MAX
    for use in row.uses:
        uses.append(_used_view(state, row.host, uuid, use, most=min(room, limits.DEVICES_MEANT_MAX)))
        room -= len(uses[-1].devices)
    return DomainView(
        domain=domain,
        host=row.host,
        hypervisor=hypervisor,
        uuid=uuid,
        name=description.name,
        domid=description.domid,
        state=description.state,
        kind=description.kind,
        memory_bytes=description.memory_bytes,
        max_memory_bytes=description.max_memory_bytes,
        vcpus=description.vcpus,
        agent=row.agent,
        stale=_doubt(state, row),
        uses=tuple(uses),
        leases=tuple(lease_id_text(lease) for lease in leases_for(state, row.host, uuid)),
        since_position=row.since_position,
        since_ns=row.since_ns,
    )


def _doubt(state: State, row: DomainState) -> str:
    """Why what is known of a domain may be out of date: who tells of devices has no say in that."""
    source = state.hosts[row.host].sources.get(row.agent)
    return f"{row.agent}: {source.doubt}" if source is not None and source.doubt else ""


def leases_for(state: State, host: HostName, uuid: str) -> list[int]:
    """The living leases that are for a domain of this uuid and have devices of this host, oldest first."""
    return [lease for lease in state.indexes.bonds.get(uuid, ()) if host in state.leases[lease].hosts]


def _used_view(state: State, host: HostName, uuid: str, use: Use, *, most: int) -> UsedView:
    devices = state.named(host, use.device)
    leases = sorted({state.devices[device].lease for device in devices} - {0})
    return UsedView(
        said=use.device,
        use=use.use,
        devices=devices[:most],
        lease=lease_id_text(leases[0]) if leases else "",
        foreign=use.use == "attached" and not any(may_use(state, lease, uuid) for lease in leases),
    )


def may_use(state: State, lease: int, uuid: str) -> bool:
    """Whether what a lease holds is for the domain of this uuid, as far as the lease says for which domain it is."""
    row = state.leases[lease]
    return not row.ended and (row.bond is None or row.bond.uuid == uuid)


def list_domains(
    state: State,
    *,
    host: str = "",
    domain: str = "",
    in_state: str = "",
    after: str = "",
    limit: int = limits.LIST_ROWS_MAX,
) -> tuple[list[DomainView], bool]:
    """Domains behind `after` in the order of their ids, at most `limit`; and whether there are more.

    `domain`: only those that are so called: by name, uuid, key or id; `in_state`: only those in this state.
    """
    found: Iterable[DomainId]
    if domain:
        found = (each for each in all_named(state, domain) if host in ("", state.domains[each].host) and each > after)
    else:
        found = _behind(state, host, after)
    if in_state:
        found = (each for each in found if state.domains[each].description.state == in_state)
    rows = list(islice(found, limit + 1))
    return [domain_view(state, each) for each in rows[:limit]], len(rows) > limit


def _behind(state: State, host: str, after: str) -> Iterator[DomainId]:
    """The domains of a host, or of all, behind `after` in the order of their ids; what is not taken costs nothing."""
    lists = state.indexes.domains
    # In the order of ids, in which a host's name is followed by a slash.
    for name in [HostName(host)] if host else sorted(lists, key="{}/".format):
        ids = lists.get(name, ())
        if ids and ids[-1] > after:
            yield from islice(ids, bisect_right(ids, after), None)


def all_named(state: State, text: str) -> tuple[DomainId, ...]:
    """The domains that are so called: by id, key, uuid (in any spelling) or name, on any host."""
    if text in state.domains:
        return (DomainId(text),)
    return state.indexes.domain_names.get(spelling(text), state.indexes.domain_names.get(text, ()))


def spelling(text: str) -> str:
    """A uuid in its one spelling; any other text as it is."""
    try:
        return identities.parse_uuid(text)
    except InvalidInputError:
        return text
