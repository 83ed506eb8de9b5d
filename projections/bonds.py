"""Leases that end with a domain: what is known of that domain, and since when it has been gone.

A domain is there while it has an incarnation, or may still hold devices. Once it was seen there on a host of the lease,
time alone does not end the lease any more. It ends when the domain has been gone for its grace time, and for all of
that time each host of the lease has shown which domains it has. Whatever makes a host's picture doubtful stops the
clock, which begins anew.
"""

from typing import Final

import msgspec

from leasehold.events.domains import DomainDescription
from leasehold.events.identities import HostName, uuid_of
from leasehold.projections.rows import HostState, LeaseState
from leasehold.projections.state import State

_replace: Final = msgspec.structs.replace


def has_devices(domain: DomainDescription) -> bool:
    """Whether it may have devices: it runs in some way, or has not let go, or nobody can tell."""
    return domain.domid >= 0 or domain.state in ("dying", "unknown")


def is_there(state: State, lease: LeaseState) -> bool:
    """Whether the domain that a lease is for is there on one of its hosts, for all that is known."""
    assert lease.bond is not None
    uuid, hosts = lease.bond.uuid, lease.hosts
    rows = (state.domains[domain] for domain in state.indexes.domain_names.get(uuid, ()))
    # Another domain may be called so.
    own = (row for row in rows if uuid_of(row.description.key) == uuid)
    return any(row.host in hosts and has_devices(row.description) for row in own)


def look(state: State, lease: int, at_ns: int) -> None:
    """Follow whether the domain of a living lease is there, or since when it has been gone."""
    row = state.leases[lease]
    if row.bond is None or row.bond.keep or row.reserved_for:
        return
    is_seen, gone_since_ns = row.domain_seen, 0
    if is_there(state, row):
        is_seen = True
    elif is_seen and all(state.hosts[host].shows_domains for host in row.hosts):
        gone_since_ns = row.gone_since_ns or at_ns
    if (is_seen, gone_since_ns) != (row.domain_seen, row.gone_since_ns):
        state.put_lease(lease, _replace(row, domain_seen=is_seen, gone_since_ns=gone_since_ns))


def look_at_domain(state: State, uuid: str, at_ns: int) -> None:
    """Something is new of a domain that leases may be for."""
    for lease in state.indexes.bonds.get(uuid, ()):
        look(state, lease, at_ns)


def put_host(state: State, at_ns: int, host: HostName, row: HostState) -> None:
    """Set a host's row; whether it shows its domains decides whether they can be missed."""
    before = state.hosts.get(host)
    state.put_host(host, row)
    bonded = state.indexes.bonded.get(host, ())
    if bonded and before is not None and before.shows_domains != row.shows_domains:
        for lease in bonded:
            look(state, lease, at_ns)
