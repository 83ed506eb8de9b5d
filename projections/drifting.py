"""Three witnesses of a device: the ledger says whose it is, hypervisors say which domain has it, and the host's own
files say whether it is there and what drives it. When they differ for some time, that is told; so is when they agree
again.

| kind | what is so | until |
|---|---|---|
| `attached_twice` | several domains have it | one has it |
| `foreign` | a domain has it, and no lease | it is let go (a lease cannot be had meanwhile) |
| `kept` | its lease has ended, and a domain still has it | it is let go |
| `misused` | a domain has it for which it is not leased | it is let go, or the lease ends |
| `lost` | it is leased, and not there | it is there again, or the lease ends |
| `replaced` | it is leased, and another thing sits in its place | the lease ends and it is free |
| `driver` | it was handed over, and is bound to another driver than then | it is bound so again, or handed over anew |
| `not_prepared` | it is leased on a managed host, and was not handed over | it is, or the lease ends |

Of several the first one counts. Words that may mean several devices (`usb-id/…` of twins) accuse none of them. Who is
out of date is not listened to: while a host's picture is, nothing is told of it and nothing resolved, and time begins
anew behind that. So does it when they differ in another way than a moment ago: what comes and goes is never told.
"""

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Final

import msgspec

from leasehold.events import limits
from leasehold.events.hostdev_events import DriftDetected, DriftResolved
from leasehold.events.hostdevs import Truth
from leasehold.events.identities import DeviceId, DomainId, HostName, split_domain_id, uuid_of
from leasehold.events.position import lease_id_text
from leasehold.events.views import DriftView
from leasehold.projections.indexes import words_of
from leasehold.projections.rows import Differing

if TYPE_CHECKING:
    from leasehold.projections.rows import DeviceState, HostState
    from leasehold.projections.state import State

RULES: Final = 4
"""Since these rules drift is told; what was decided by earlier ones is decided without it."""
TOLD_AT_ONCE_MAX: Final = 64
"""Devices of which one tick tells."""
_NS_PER_MS: Final = 1_000_000

HELP: Final = {
    "foreign": "detach it from the domain, or end the domain; then lease it for that domain",
    "misused": "detach it from that domain, or release the lease and ask for one that is for that domain",
    "attached_twice": "end all of these domains but the one that it is leased for: they may be writing over each other",
    "lost": "plug the same thing in again, or release the lease",
    "replaced": "put back what was there, or release the lease: its token does not act on what is there now",
    "driver": "let the domain go and release the lease; until then the device may not be what its holder takes it for",
    "not_prepared": "see that the binder on its host runs and what it says; or release the lease",
    "kept": "detach it from the domain or end the domain; an operator may take it away with revoke and force",
}
"""What to do about each kind."""


# --- how they differ ----------------------------------------------------------------------------------------------


def kind_of(state: "State", row: "DeviceState") -> str:
    """How the witnesses of a device differ, as far as is known now: one of `hostdevs.DRIFTS`; empty: they agree."""
    domains = list(islice(_having(state, row), 2)) if state.indexes.users else []
    if len(domains) > 1:
        return "attached_twice"
    if not row.lease:
        return "foreign" if domains else ""
    lease = state.leases[row.lease]
    if lease.ended:
        return "kept" if domains else ""
    if domains and (lease.reserved_for or (lease.bond is not None and _uuid(domains[0]) != lease.bond.uuid)):
        return "misused"
    if row.missing:
        return "lost"
    if row.displaced:
        return "replaced"
    binding = row.binding
    if binding is None or binding.given_back or binding.lease != row.lease:
        host = state.hosts[row.host]
        return "not_prepared" if host.mode == "managed" and host.managed_since < row.lease else ""
    # Of USB only the interfaces change their drivers, and what a domain does to those is its own matter.
    is_other = row.description.kind == "pci" and binding.driver != row.description.driver
    return "driver" if is_other else ""


def _having(state: "State", row: "DeviceState") -> Iterator[DomainId]:
    """The domains that have this very device, one for each uuid: two hypervisors may tell of the same one."""
    seen: set[str] = set()
    for word in words_of(row.description):
        users = state.indexes.users.get((row.host, word), ())
        if users and len(state.named(row.host, word)) == 1:
            for domain in users:
                if _uuid(domain) not in seen and _since(state, domain, word):
                    seen.add(_uuid(domain))
                    yield domain


def _since(state: "State", domain: DomainId, word: str) -> int:
    """Since which event a domain has what it calls `word`; 0: it has not."""
    row = state.domains[domain]
    for use, position in zip(row.uses, row.used_since, strict=True):
        if use.device == word and use.use == "attached":
            return position
    return 0


def _uuid(domain: DomainId) -> str:
    return uuid_of(split_domain_id(domain)[1])


# --- following it -------------------------------------------------------------------------------------------------


def may_differ(state: "State", row: "DeviceState") -> bool:
    """Whether the witnesses of a device may differ, or those of what is called as it is: for nearly all a quick no."""
    if row.differing is not None or row.drift is not None:
        return True
    users, description = state.indexes.users, row.description
    if users and (description.kind != "pci" or (row.host, description.key) in users):
        return True
    if not row.lease:
        return False
    return row.missing or row.displaced or row.binding is not None or state.hosts[row.host].mode == "managed"


def follow(state: "State", device: DeviceId, row: "DeviceState") -> None:
    """Something is new of a device, or of who has it."""
    kind = kind_of(state, row)
    before = row.differing
    if kind == (row.drift.kind if row.drift is not None else ""):
        after = None
    elif state.hosts[row.host].stale:
        after = Differing(kind=kind, since_ns=0)
    elif before is not None and before.kind == kind and before.since_ns:
        after = before
    else:
        after = Differing(kind=kind, since_ns=state.at_ns)
    if after != before:
        row = msgspec.structs.replace(row, differing=after)
        state.devices.put(device, row)
        when_ns = due_ns(row)
        if when_ns is not None:
            state.drifts.push(when_ns, device)
    state.indexes.note_drift(row.host, device, is_in=after is not None or row.drift is not None)


def follow_word(state: "State", host: HostName, word: str) -> None:
    """Something is new of what a hypervisor means by `word`, or of who uses it."""
    devices = state.named(host, word)
    # Where it means more than two it meant several before, and still accuses none.
    if len(devices) <= 2:
        for device in devices:
            follow(state, device, state.devices[device])


def follow_device(state: "State", device: DeviceId, before: "DeviceState | None", after: "DeviceState") -> None:
    """A device has another row, which was put already."""
    follow(state, device, after)
    if not state.indexes.users or (before is not None and before.description is after.description):
        return
    # If it is called otherwise, another one may be the only one of that name now, or not any more.
    was = set(words_of(before.description)) if before is not None else set()
    for word in sorted(was ^ set(words_of(after.description))):
        if (after.host, word) in state.indexes.users:
            follow_word(state, after.host, word)


def follow_host(state: "State", host: HostName) -> None:
    """What is known of a host has come to be out of date, or is not any more, or nobody hands over there any more."""
    for device in state.indexes.drifting.get(host, ()):
        follow(state, device, state.devices[device])


def index_anew(state: "State") -> None:
    """Derive from the rows what following them has led to; nothing is yet."""
    for device, row in state.devices.items():
        if row.differing is not None or row.drift is not None:
            state.indexes.note_drift(row.host, device, is_in=True)
    state.drifts.fill(state.devices.items())


def due_ns(row: "DeviceState") -> int | None:
    """When it is to be told that the witnesses of a device differ otherwise than was told; `None`: it is not."""
    if row.differing is None or not row.differing.since_ns:
        return None
    wait_ms = limits.PREPARE_TIMEOUT_MS if row.differing.kind == "not_prepared" else limits.DRIFT_MS
    return row.differing.since_ns + wait_ms * _NS_PER_MS


# --- telling it ---------------------------------------------------------------------------------------------------


def told(
    state: "State", now_ns: int, *, but: frozenset[DeviceId], limit: int
) -> list[DriftDetected | DriftResolved]:
    """What is due at `now_ns`: at most `limit` events, of the eldest devices; none of `but`, which change just now."""
    events: list[DriftDetected | DriftResolved] = []
    for device in state.drifts.due_by(now_ns, limit=TOLD_AT_ONCE_MAX):
        row = state.devices[device]
        assert row.differing is not None
        some: list[DriftDetected | DriftResolved] = []
        if row.drift is not None:
            some.append(DriftResolved(device=device, kind=row.drift.kind, since_position=row.drift.position))
        if row.differing.kind:
            leased, attached, bound = truths(state, row)
            some.append(
                DriftDetected(device=device, kind=row.differing.kind, leased=leased, attached=attached, bound=bound)
            )
        if device in but:
            continue
        if len(events) + len(some) > limit:
            break
        events += some
    return events


def truths(state: "State", row: "DeviceState") -> tuple[Truth, Truth, Truth]:
    """What the ledger, the hypervisors, and the host's own files say of a device."""
    return _leased(state, row), _attached(state, row), _bound(row)


def _leased(state: "State", row: "DeviceState") -> Truth:
    if not row.lease:
        return Truth("it is nobody's", row.since_position)
    lease, name = state.leases[row.lease], lease_id_text(row.lease)
    if lease.ended:
        ended = f"lease {name} of {lease.holder} was ended ({lease.ended}), and it is not free yet"
        return Truth(ended, row.since_position)
    whom = f" for domain {lease.bond.uuid}" if lease.bond is not None else ""
    return Truth(f"leased to {lease.holder} ({name}){whom}", row.since_position)


def _attached(state: "State", row: "DeviceState") -> Truth:
    having = list(islice(_having(state, row), limits.USERS_TOLD_MAX + 1))
    if not having:
        return Truth("no domain has it", 0)
    names = []
    for domain in having[: limits.USERS_TOLD_MAX]:
        name = state.domains[domain].description.name
        names.append(f"{name} ({domain})" if name else str(domain))
    more = " and more" if len(having) > limits.USERS_TOLD_MAX else ""
    words = words_of(row.description)
    newest = max(_since(state, domain, word) for domain in having for word in words)
    return Truth(f"{', '.join(names)}{more} {'has' if len(having) == 1 else 'have'} it", newest)


def _bound(row: "DeviceState") -> Truth:
    driver = row.description.driver
    driven = f"bound to {driver}" if driver else "bound to no driver"
    if row.missing:
        says = "it is not there"
    elif row.displaced:
        ids = ":".join(filter(None, (row.description.vendor_id, row.description.product_id)))
        says = f"another thing is there{f' ({ids})' if ids else ''}, {driven}"
    else:
        says = f"it is there, {driven}"
    return Truth(says, row.described_position)


# --- showing it ---------------------------------------------------------------------------------------------------


def list_drifts(
    state: "State",
    *,
    host: str = "",
    devices: frozenset[DeviceId] | None = None,
    after: str = "",
    limit: int = limits.LIST_ROWS_MAX,
) -> tuple[list[DriftView], bool]:
    """The drifts that were told and are not resolved, by device, from behind `after`; and whether there are more.

    `devices`: only of these; `None`: of all.
    """
    rows = list(islice(_told_of(state, host, devices, after), limit + 1))
    views = [
        DriftView(
            device=device,
            kind=row.drift.kind,
            since_position=row.drift.position,
            since_ns=row.drift.at_ns,
            leased=row.drift.leased,
            attached=row.drift.attached,
            bound=row.drift.bound,
            help=HELP[row.drift.kind],
        )
        for device, row in rows[:limit]
        if row.drift is not None
    ]
    return views, len(rows) > limit


def _told_of(
    state: "State", host: str, devices: frozenset[DeviceId] | None, after: str
) -> Iterator[tuple[DeviceId, "DeviceState"]]:
    lists = state.indexes.drifting
    # In the order of ids, in which a host's name is followed by a slash.
    for name in [HostName(host)] if host else sorted(lists, key="{}/".format):
        for device in lists.get(name, ()):
            row = state.devices[device]
            if device > after and row.drift is not None and (devices is None or device in devices):
                yield device, row


def began_to_manage(before: "HostState | None", mode: str, position: int) -> int:
    """Since when a host is managed that is now of this mode: what was leased before was not to be handed over."""
    if mode != "managed":
        return 0
    return before.managed_since if before is not None and before.mode == "managed" else position
