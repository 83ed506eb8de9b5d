"""What must hold of domains, and of leases that are for one, in any log: a part of the audit.

- A domain uses nothing any more when it vanishes, and nothing is told of one that is not known.
- A lease is for the domain that was asked for. Once that was there on a host of the lease, the lease does not expire.
- It ends with its domain only when that was there, and is not, and all hosts of the lease have shown that for the
  grace time which was asked for: their pollers and whoever tells of their devices were not in doubt meanwhile. Or the
  binder of the one host of the lease says that the domain has let go of it.
- With all of a domain's leases, only those end that are for it.
- A PCI function that is attached to a domain is not granted, and becomes free by nobody's word but an operator's.

Written apart from `bonds` and `domains`, so that a mistake there is not made here, too.
"""

from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from leasehold.events import event_types, inputs
from leasehold.events.domains import DomainDescription
from leasehold.events.event_types import DomainBond, Event
from leasehold.events.hostdev_events import HostDeclaredDead, LeaseRevoked, PrepareFailed
from leasehold.events.identities import DeviceId, HostName, split_device_id
from leasehold.events.inputs import BINDER, Asked, Input, LeaseRequest, Observed, PrepareRequest, ReattachRequest
from leasehold.events.schedule_inputs import ReserveRequest

_NS_PER_MS: Final = 1_000_000


class _Domain(msgspec.Struct):
    """A domain that is known."""

    agent: str
    uuid: str
    name: str
    is_there: bool
    uses: set[tuple[str, str]]


class _Host(msgspec.Struct):
    """Of a host: which of its agents are in doubt, or blind, and which domains it has."""

    doubted: dict[str, bool]
    blind: set[str]
    domains: dict[str, _Domain]
    left_ns: dict[str, int]
    """When the last domain of a uuid went that was there."""
    shown_ns: int = 0
    """Since when it shows which domains it has; 0: it does not."""

    def shows(self) -> bool:
        """Whether it is known which domains are there."""
        agents = [agent for agent in self.doubted if agent != inputs.CREATOR]
        is_whole = inputs.POLLER in agents and any(agent not in (inputs.POLLER, BINDER) for agent in agents)
        return is_whole and not any(self.doubted[agent] or agent in self.blind for agent in agents)

    def has(self, uuid: str) -> bool:
        """Whether a domain of that uuid is there."""
        return any(each.uuid == uuid and each.is_there for each in self.domains.values())


class _Bond(msgspec.Struct):
    """A living lease for a domain; it ends with that unless it only names it."""

    bond: DomainBond
    hosts: tuple[HostName, ...]
    is_seen: bool = False


class DomainAudit:
    """The domains of a log, as they are told, and the leases for them."""

    TYPES: Final = frozenset(
        {
            event_types.LeaseGranted,
            event_types.LeaseReleased,
            event_types.LeaseExpired,
            event_types.LeaseOutlived,
            PrepareFailed,
            LeaseRevoked,
            HostDeclaredDead,
            event_types.DeviceFreed,
            event_types.LedgerRestored,
            event_types.HostWentStale,
            event_types.HostCameBack,
            event_types.SourceStarted,
            event_types.SourceStopped,
            event_types.ReportRequested,
            event_types.PictureCompleted,
            event_types.SourceWentBlind,
            event_types.SourceSeesAgain,
            event_types.AgentRetired,
            event_types.DomainAppeared,
            event_types.DomainChanged,
            event_types.DomainStarted,
            event_types.DomainVanished,
            event_types.AttachmentSeen,
            event_types.AttachmentGone,
        }
    )
    """What has to be looked at; the others say nothing of domains."""

    def __init__(
        self, is_dead: Callable[[HostName], bool], waited_for: Callable[[int], LeaseRequest | None]
    ) -> None:
        """`is_dead` tells whether a host is off, so that nothing has a device of it, whatever was told before;
        `waited_for`, what is asked for at a place of the queue.
        """
        self._is_dead = is_dead
        self._waited_for = waited_for
        self._hosts: dict[str, _Host] = {}
        self._bonds: dict[int, _Bond] = {}
        self._leases: dict[str, dict[int, None]] = {}
        """By the uuid of the domain that they end with."""

    def take(self, position: int, at_ns: int, given: Input, event: Event, *, grace_until_ns: int) -> str:
        """Look at the next event: what is wrong with it; empty: nothing."""
        host = self._hosts.get(getattr(event, "host", ""))
        wrong = ""
        match event:
            case event_types.LeaseGranted():
                wrong = self._grant(position, given, event)
            case event_types.LeaseReleased():
                wrong = self._release(given, event.lease)
            case PrepareFailed() | LeaseRevoked():
                self._end(event.lease)
            case event_types.LeaseExpired():
                bond = self._end(event.lease)
                wrong = "a lease expires although its domain was seen" if bond is not None and bond.is_seen else ""
            case event_types.LeaseOutlived():
                wrong = self._outlive(at_ns, given, event, grace_until_ns)
            case event_types.DeviceFreed() if event.request is None:
                is_off = self._is_dead(split_device_id(event.device)[0])
                wrong = self._attached(() if is_off else (event.device,))
            case event_types.LedgerRestored():
                for each in self._hosts.values():
                    each.doubted = dict.fromkeys(each.doubted, True)
                    each.shown_ns = 0
            case HostDeclaredDead() if host is not None:
                host.doubted = dict.fromkeys(host.doubted, True)
                host.shown_ns = 0
            case event_types.SourceStarted() if host is None:
                self._hosts[event.host] = _Host({event.agent: True}, set(), {}, {})
            case _ if host is not None:
                wrong = self._of_host(at_ns, given, event, host)
        return wrong

    # --- hosts ----------------------------------------------------------------------------------------------------

    def _of_host(self, at_ns: int, given: Input, event: Event, host: _Host) -> str:
        match event:
            case event_types.SourceStarted():
                host.doubted[event.agent] = True
                host.blind.discard(event.agent)
            case event_types.SourceStopped() | event_types.HostWentStale() | event_types.ReportRequested():
                host.doubted[event.agent] = True
            case event_types.HostCameBack() | event_types.PictureCompleted():
                host.doubted[event.agent] = False
            case event_types.SourceWentBlind():
                host.blind.add(event.agent)
            case event_types.SourceSeesAgain():
                host.blind.discard(event.agent)
            case event_types.AgentRetired():
                if not _is_asked(given, event):
                    return f"{event.agent} is retired, but not as it was asked for"
                host.doubted.pop(event.agent, None)
                host.blind.discard(event.agent)
                host.domains = {key: each for key, each in host.domains.items() if each.agent != event.agent}
            case _:
                return self._of_domain(at_ns, event, host)
        if not host.shows():
            host.shown_ns = 0
        elif not host.shown_ns:
            host.shown_ns = at_ns
        return ""

    def _of_domain(self, at_ns: int, event: Event, host: _Host) -> str:
        match event:
            case event_types.DomainAppeared():
                if event.domain.key in host.domains:
                    return f"domain {event.domain.key} appears, but is known"
                uuid = event.domain.key.partition("/")[2]
                host.domains[event.domain.key] = _Domain(
                    event.agent, uuid, event.domain.name, _is_there(event.domain), set()
                )
                self._see(event.host, host, uuid)
            case event_types.DomainChanged() | event_types.DomainStarted():
                known = host.domains.get(event.domain.key)
                if known is None:
                    return f"domain {event.domain.key} is otherwise, but is not known"
                if known.is_there:
                    host.left_ns[known.uuid] = at_ns
                known.is_there, known.name = _is_there(event.domain), event.domain.name
                self._see(event.host, host, known.uuid)
            case event_types.DomainVanished():
                known = host.domains.pop(event.key, None)
                if known is None or known.uses:
                    return f"domain {event.key} vanishes, but is not known or still uses something"
                if known.is_there:
                    host.left_ns[known.uuid] = at_ns
            case event_types.AttachmentSeen() | event_types.AttachmentGone():
                known, use = host.domains.get(event.domain), (event.device, event.use)
                is_new = isinstance(event, event_types.AttachmentSeen)
                if known is None or (use in known.uses) == is_new:
                    return f"what domain {event.domain} uses is told twice, or of none that is known"
                (known.uses.add if is_new else known.uses.remove)(use)
        return ""

    def _see(self, name: HostName, host: _Host, uuid: str) -> None:
        """Leases that are for a domain that is there end with it."""
        if host.has(uuid):
            for lease in self._leases.get(uuid, ()):
                self._bonds[lease].is_seen |= name in self._bonds[lease].hosts

    # --- leases ---------------------------------------------------------------------------------------------------

    def _grant(self, position: int, given: Input, event: event_types.LeaseGranted) -> str:
        request = given.request if isinstance(given, Asked) else None
        bond = event.bond if event.bond is not msgspec.UNSET else None
        asked = None
        if event.queued:
            request = self._waited_for(event.queued)
        if isinstance(request, ReserveRequest):
            source = self._bonds.get(request.lease)
            asked = source.bond if source is not None else None
        elif isinstance(request, LeaseRequest) and request.domain:
            asked = DomainBond(uuid=request.domain, gone_ms=request.gone_ms, keep=request.keep)
        elif isinstance(request, PrepareRequest) and bond is not None and self._means(request.domain, bond.uuid):
            asked = DomainBond(uuid=bond.uuid, gone_ms=request.gone_ms, keep=request.keep)
        if bond != asked or (asked is None and isinstance(request, PrepareRequest)):
            return f"a lease for {event.holder} is granted, but not for the domain that was asked for"
        if bond is not None:
            hosts = tuple(dict.fromkeys(split_device_id(device)[0] for device in event.devices))
            is_seen = any(host in self._hosts and self._hosts[host].has(bond.uuid) for host in hosts)
            self._bonds[position] = _Bond(bond, hosts, is_seen and not bond.keep)
            if not bond.keep:
                self._leases.setdefault(bond.uuid, {})[position] = None
        return self._attached(event.devices if event.mode != "admin" else ())

    def _means(self, text: str, uuid: str) -> bool:
        """Whether a domain of this uuid is meant: by that, by a key or id that ends with it, or by its name."""
        if text.rpartition("/")[2] == uuid:
            return True
        known = (domain for host in self._hosts.values() for domain in host.domains.values())
        return any((each.name, each.uuid) == (text, uuid) for each in known)

    def _end(self, lease: int) -> _Bond | None:
        bond = self._bonds.pop(lease, None)
        if bond is not None and not bond.bond.keep:
            del self._leases[bond.bond.uuid][lease]
        return bond

    def _release(self, given: Input, lease: int) -> str:
        bond, request = self._end(lease), given.request if isinstance(given, Asked) else None
        if not isinstance(request, ReattachRequest):
            return ""
        is_its = bond is not None and self._means(request.domain, bond.bond.uuid)
        return "" if is_its else f"a lease is released with domain {request.domain}, which it is not for"

    def _outlive(self, at_ns: int, given: Input, event: event_types.LeaseOutlived, grace_until_ns: int) -> str:
        bond = self._end(event.lease)
        if bond is None or bond.bond.keep or bond.bond.uuid != event.domain:
            return "a lease ends with a domain that it is not for, or does not live"
        if isinstance(given, Observed):
            has_let_go = given.agent == BINDER and inputs.LetGo(event.lease) in given.observations
            is_its = has_let_go and bond.hosts == (given.host,)
            return "" if is_its else "a lease ends with its domain by the word of another than the binder of its host"
        if not bond.is_seen or any(self._hosts[host].has(event.domain) for host in bond.hosts):
            return f"a lease ends with domain {event.domain}, which was not seen yet, or is there"
        hosts = [self._hosts[host] for host in bond.hosts]
        if not all(host.shown_ns for host in hosts):
            return f"a lease ends with domain {event.domain}, but a host does not show which domains it has"
        gone_ns = max(max(host.shown_ns, host.left_ns.get(event.domain, 0)) for host in hosts)
        if event.gone_since_ns < gone_ns or at_ns < event.gone_since_ns + bond.bond.gone_ms * _NS_PER_MS:
            return f"a lease ends with domain {event.domain} before that has been gone for its grace time"
        return "a lease ends with its domain in a grace time" if at_ns < grace_until_ns else ""

    def _attached(self, devices: Iterable[DeviceId]) -> str:
        for device in devices:
            name, key = split_device_id(device)
            domains = self._hosts[name].domains if name in self._hosts else {}
            has_it = next((domain for domain, each in domains.items() if (key, "attached") in each.uses), None)
            if has_it is not None:
                return f"{device} is granted or becomes free, but is attached to domain {has_it}"
        return ""


def _is_there(domain: DomainDescription) -> bool:
    return domain.domid >= 0 or domain.state in ("dying", "unknown")


def _is_asked(given: Input, event: event_types.AgentRetired) -> bool:
    request = given.request if isinstance(given, Asked) else None
    if not isinstance(request, inputs.RetireAgentRequest):
        return False
    return (request.host, request.agent) == (event.host, event.agent)
