"""Answers from the state alone, each from one position of the log: nothing here waits."""

import re
import time
from bisect import bisect_right
from collections.abc import Callable
from typing import Any, Final

import msgspec

from leasehold.events import limits
from leasehold.events.answers import Answer
from leasehold.events.devices import DeviceDescription
from leasehold.events.errors import InvalidInputError
from leasehold.events.hostdevs import Hold
from leasehold.events.identities import DeviceId, HostName, Principal, RequestId, parse_uuid, request_key
from leasehold.events.inputs import BINDER, POLLER
from leasehold.events.position import end_of_record, lease_id_text, parse_lease_id, parse_queued_id
from leasehold.events.questions import (
    Consider,
    Explain,
    ListClasses,
    ListDevices,
    ListDomains,
    ListDrifts,
    ListHostdevs,
    ListHosts,
    ListLeases,
    ListOrders,
    ListQueue,
    ListQuotas,
    ListTaints,
    Question,
    Reading,
    Show,
    Status,
    StatusView,
    Sync,
)
from leasehold.projections import (
    bindings,
    conflicts,
    domains,
    drifting,
    explaining,
    hostdevlists,
    marking,
    nodedev,
    orders,
    schedulelists,
    views,
)
from leasehold.projections.answers import answer_for, lease_word
from leasehold.projections.considering import considered
from leasehold.projections.naming import Resolved, resolve
from leasehold.projections.rows import HostState
from leasehold.projections.state import State
from leasehold.services.permissions import AGENT_PREFIX
from leasehold.services.query.decoding import considered_request
from leasehold.services.query.lists import DeviceFilters, DeviceIds, LeaseIds

STALE_HOSTS_MAX: Final = 1_000
"""How many stale hosts `status` names."""
_LEASE: Final = re.compile(r"L[1-9][0-9]{0,15}")


class Answerer:
    """Answers questions about one state, which may move on between them."""

    def __init__(self, state: State, clock: Callable[[], int] = time.time_ns) -> None:
        """`clock`: the time (ns since 1970, UTC) at which requests are considered."""
        self._state = state
        self._clock = clock
        self._devices = DeviceIds()
        self._filters = DeviceFilters()
        self._leases = LeaseIds()
        self._handlers: dict[type[Question], Callable[[Any, Principal], Reading]] = {
            ListDevices: self._list_devices,
            ListLeases: self._list_leases,
            ListHosts: self._list_hosts,
            ListOrders: self._list_orders,
            ListDomains: self._list_domains,
            ListHostdevs: self._list_hostdevs,
            ListDrifts: self._list_drifts,
            ListClasses: self._list_classes,
            ListQuotas: self._list_quotas,
            ListQueue: self._list_queue,
            ListTaints: self._list_taints,
            Consider: self._consider,
            Show: self._show,
            Explain: self._explain,
            Sync: self._sync,
            Status: self._status,
        }

    @property
    def as_of(self) -> int:
        """The position up to which the state goes."""
        return end_of_record(self._state.head.sequence)

    def answer(self, question: Question, asker: Principal) -> Reading:
        """The answer to any question but a history."""
        return self._handlers[type(question)](question, asker)

    # --- lists --------------------------------------------------------------------------------------------------

    def _list_devices(self, question: ListDevices, _asker: Principal) -> Reading:
        if question.host and question.host not in self._state.hosts:
            return self._unknown_host(question.host)
        wanted = nodedev.wanted_by(self._state, question)
        if wanted.parents is not None and not wanted.parents:
            return self.not_found(f"no device {question.parent} is known")
        if question.count_only:
            count = self._filters.count(self._state, wanted, host=question.host)
            return Reading(outcome="ok", as_of=self.as_of, count=count)
        host, after, limit = question.host, question.after, question.limit
        if wanted.is_all:
            ids, more = self._devices.page(self._state, host=host, after=after, limit=limit)
        else:
            ids, more = self._filters.page(self._state, wanted, host=host, after=after, limit=limit)
        rows = [views.device_view(self._state, device) for device in ids]
        return Reading(outcome="ok", as_of=self.as_of, devices=rows, more=more)

    def _list_leases(self, question: ListLeases, asker: Principal) -> Reading:
        ids, more = self._leases.page(
            self._state, holder=question.holder, ended=question.ended, after=question.after, limit=question.limit
        )
        rows = [views.lease_view(self._state, lease, asker=asker) for lease in ids]
        return Reading(outcome="ok", as_of=self.as_of, leases=rows, more=more)

    def _list_hosts(self, question: ListHosts, _asker: Principal) -> Reading:
        names = sorted(self._state.hosts)
        low = bisect_right(names, question.after)
        rows = [views.host_view(self._state, host) for host in names[low : low + question.limit]]
        return Reading(outcome="ok", as_of=self.as_of, hosts=rows, more=low + question.limit < len(names))

    def _list_orders(self, question: ListOrders, _asker: Principal) -> Reading:
        if question.host and question.host not in self._state.hosts:
            return self._unknown_host(question.host)
        rows, more = orders.list_orders(
            self._state, host=question.host, ended=question.ended, after=question.after, limit=question.limit
        )
        return Reading(outcome="ok", as_of=self.as_of, orders=rows, more=more)

    def _list_domains(self, question: ListDomains, _asker: Principal) -> Reading:
        if question.host and question.host not in self._state.hosts:
            return self._unknown_host(question.host)
        rows, more = domains.list_domains(
            self._state,
            host=question.host,
            domain=question.domain,
            in_state=question.state,
            after=question.after,
            limit=question.limit,
        )
        return Reading(outcome="ok", as_of=self.as_of, domains=rows, more=more)

    def _list_hostdevs(self, question: ListHostdevs, _asker: Principal) -> Reading:
        if question.host and question.host not in self._state.hosts:
            return self._unknown_host(question.host)
        if question.domain and not self._may_be_domain(question.domain):
            return self.not_found(f"no domain {question.domain} is known")
        rows, more = hostdevlists.list_hostdevs(
            self._state,
            host=question.host,
            bus=question.bus,
            in_state=question.state,
            domain=question.domain,
            after=question.after,
            limit=question.limit,
        )
        return Reading(outcome="ok", as_of=self.as_of, hostdevs=rows, more=more)

    def _may_be_domain(self, text: str) -> bool:
        """Whether a domain is called so, or leases may be for one that is not there yet."""
        if domains.all_named(self._state, text):
            return True
        try:
            parse_uuid(text)
        except InvalidInputError:
            return False
        return True

    def _list_drifts(self, question: ListDrifts, _asker: Principal) -> Reading:
        if question.host and question.host not in self._state.hosts:
            return self._unknown_host(question.host)
        devices: frozenset[DeviceId] | None = None
        if question.device:
            found = resolve(self._state, question.device, question.host)
            if found.device is None:
                return self.not_found(unresolved_text(found))
            devices = frozenset(part_of(self._state, found.device))
        rows, more = drifting.list_drifts(
            self._state, host=question.host, devices=devices, after=question.after, limit=question.limit
        )
        return Reading(outcome="ok", as_of=self.as_of, drifts=rows, more=more)

    # --- scheduling ---------------------------------------------------------------------------------------------

    def _list_classes(self, question: ListClasses, _asker: Principal) -> Reading:
        name = question.name
        if name and name not in self._state.classes:
            return self.not_found(f"there is no class {name}")
        if not question.free:
            found, more = schedulelists.class_views(self._state, name=name, after=question.after, limit=question.limit)
            return Reading(outcome="ok", as_of=self.as_of, classes=found, more=more)
        if not name:
            raise InvalidInputError("name the class of which the free devices are to be listed", field="name")
        ids, more = schedulelists.free_devices(self._state, name, after=question.after, limit=question.limit)
        rows = [views.device_view(self._state, device) for device in ids]
        view, _ = schedulelists.class_view(self._state, name)
        return Reading(outcome="ok", as_of=self.as_of, classes=[view], devices=rows, more=more)

    def _list_quotas(self, question: ListQuotas, _asker: Principal) -> Reading:
        rows, more = schedulelists.quota_views(
            self._state, tenant=question.tenant, after=question.after, limit=question.limit
        )
        return Reading(outcome="ok", as_of=self.as_of, quotas=rows, more=more)

    def _list_queue(self, question: ListQueue, _asker: Principal) -> Reading:
        rows, more = schedulelists.queued_views(
            self._state,
            tenant=question.tenant,
            device_class=question.device_class,
            after=question.after,
            limit=question.limit,
        )
        return Reading(outcome="ok", as_of=self.as_of, queue=rows, more=more)

    def _list_taints(self, question: ListTaints, _asker: Principal) -> Reading:
        if question.host and question.host not in self._state.hosts:
            return self._unknown_host(question.host)
        rows, more = marking.taint_views(self._state, host=question.host, after=question.after, limit=question.limit)
        return Reading(outcome="ok", as_of=self.as_of, taints=rows, more=more)

    def _consider(self, question: Consider, asker: Principal) -> Reading:
        # What is taken back is put in place anew, behind what came later: lists that follow tables have to know it.
        self._leases.follow(self._state)
        now_ns = max(self._clock(), self._state.head.decided_at_ns)
        request = considered_request(question)
        answer, broken = considered(self._state, asker, request, now_ns)
        rows = broken[: limits.LIST_ROWS_MAX]
        return Reading(outcome="ok", as_of=self.as_of, answer=answer, broken=rows, more=len(broken) > len(rows))

    # --- one thing ----------------------------------------------------------------------------------------------

    def _show(self, question: Show, asker: Principal) -> Reading:
        lease = parse_lease_name(question.name)
        if lease:
            return self._lease_reading(lease, asker)
        found = resolve(self._state, question.name, question.host)
        if found.device is None:
            return self.not_found(unresolved_text(found))
        return Reading(outcome="ok", as_of=self.as_of, devices=[views.device_view(self._state, found.device)])

    def _lease_reading(self, lease: int, asker: Principal) -> Reading:
        if lease not in self._state.leases:
            return self.not_found(f"no lease {lease_id_text(lease)} is remembered; its history may tell of it")
        view = views.lease_view(self._state, lease, asker=asker)
        return Reading(outcome="ok", as_of=self.as_of, leases=[view], message=self._lease_text(lease))

    def _lease_text(self, lease: int) -> str:
        row = self._state.leases[lease]
        name, word = f"{lease_id_text(lease)} of {row.holder}", lease_word(row)
        if word == "living":
            return f"{name} lives"
        if word == "ended":
            return f"{name} was ended ({row.ended}), and all its devices are free"
        held = (device for device in row.devices if self._state.devices[device].lease == lease)
        return f"{name} was ended ({row.ended}); not known to be free yet: {', '.join(held)}"

    # --- why ----------------------------------------------------------------------------------------------------

    def _explain(self, question: Explain, asker: Principal) -> Reading:
        state, name = self._state, question.name
        lease, queued = parse_lease_name(name), parse_queued_name(name)
        if lease in state.leases:
            return msgspec.structs.replace(
                self._lease_reading(lease, asker), explanation=explaining.of_lease(state, lease)
            )
        if queued in state.queue:
            told = explaining.of_queued(state, queued)
            rows = [schedulelists.queued_view(state, queued)]
            return Reading(outcome="ok", as_of=self.as_of, queue=rows, explanation=told, message=told.text)
        found = resolve(state, name, question.host)
        if found.device is not None:
            return self._explain_device(found.device, (asker, question.holder))
        if name in state.classes:
            told = explaining.of_class(state, name, (asker, question.holder), self._clock())
            view, _ = schedulelists.class_view(state, name)
            return Reading(outcome="ok", as_of=self.as_of, classes=[view], explanation=told, message=told.text)
        answer = answer_for(state, request_key(asker, RequestId(name)))
        if answer is not None:
            why = explaining.of_answer(state, answer)
            return Reading(
                outcome="ok", as_of=self.as_of, answer=answer, explanation=why, message=_decided_text(answer)
            )
        if found.candidates:
            return self.not_found(unresolved_text(found))
        if queued:
            return self.not_found(f"nobody waits at {name} any more; its history tells what became of it")
        said = "is no device, no class and no lease that is known, nobody waits there, and it is no request of yours"
        return self.not_found(f"{name} {said}")

    def _explain_device(self, device: DeviceId, owner: tuple[Principal, str]) -> Reading:
        told, found = explaining.of_device(self._state, device, owner)
        view = views.device_view(self._state, device)
        return Reading(
            outcome="ok", as_of=self.as_of, devices=[view], blockers=list(found), explanation=told, message=told.text
        )

    # --- agents and overview ------------------------------------------------------------------------------------

    def _sync(self, question: Sync, asker: Principal) -> Reading:
        if asker.startswith(AGENT_PREFIX) and asker != f"{AGENT_PREFIX}{question.host}":
            raise InvalidInputError(f"{asker} may ask about its own host only", field="host")
        host = self._state.hosts.get(HostName(question.host))
        if host is None:
            return self._unknown_host(question.host)
        if question.agent == POLLER:
            return self._sync_domains(question, host)
        # Ids of one host stand in the order of their keys.
        after = f"{question.host}/{question.after}" if question.after else ""
        descriptions: list[DeviceDescription] = []
        holds: list[Hold] = []
        more = True
        while more and len(descriptions) < question.limit:
            room = question.limit - len(descriptions)
            ids, more = self._devices.page(self._state, host=question.host, after=after, limit=room)
            rows = [self._state.devices[device] for device in ids]
            descriptions += [row.description for row in rows if not row.missing]
            if question.agent == BINDER:
                # What is missing is held all the same.
                found = (bindings.hold_of(self._state, device) for device in ids)
                holds += [hold for hold in found if hold is not None]
            after = ids[-1] if ids else after
        source = host.sources.get(question.agent)
        return Reading(
            outcome="ok",
            as_of=self.as_of,
            descriptions=descriptions,
            holds=holds,
            source_run=source.run if source else 0,
            source_counter=source.counter if source else 0,
            orders=[] if question.after else orders.open_orders(self._state, question.host, question.agent),
            more=more,
        )

    def _sync_domains(self, question: Sync, host: HostState) -> Reading:
        """What a poller has told, which is domains, in the order of their keys."""
        told = domains.seen_domains(self._state, HostName(question.host), question.agent)
        low = bisect_right(told, question.after, key=lambda seen: seen.domain.key)
        source = host.sources.get(question.agent)
        return Reading(
            outcome="ok",
            as_of=self.as_of,
            seen_domains=told[low : low + question.limit],
            source_run=source.run if source else 0,
            source_counter=source.counter if source else 0,
            more=low + question.limit < len(told),
        )

    def _status(self, _question: Status, _asker: Principal) -> Reading:
        state, head = self._state, self._state.head
        stale = sorted(host for host, row in state.hosts.items() if row.stale)
        status = StatusView(
            cluster=head.cluster,
            ledger_id=head.ledger_id,
            era=head.era,
            sequence=head.sequence,
            chain=head.chain,
            decided_at_ns=head.decided_at_ns,
            decider=head.decider,
            grace_until_ns=head.grace_until_ns,
            observed_through=head.observed_through,
            hosts=len(state.hosts),
            devices=len(state.devices),
            living_leases=sum(not row.ended for row in state.leases.values()),
            ending_devices=sum(map(len, state.indexes.ending.values())),
            hosts_stale=stale[:STALE_HOSTS_MAX],
        )
        return Reading(outcome="ok", as_of=self.as_of, status=status, more=len(stale) > STALE_HOSTS_MAX)

    # --- nothing there ------------------------------------------------------------------------------------------

    def not_found(self, message: str) -> Reading:
        """Nothing is known by that name."""
        return Reading(outcome="not_found", as_of=self.as_of, message=message)

    def _unknown_host(self, host: str) -> Reading:
        return self.not_found(f"no host {host} is known")


def parse_lease_name(name: str) -> int:
    """The lease that `L4352` names; 0 for anything else."""
    if not _LEASE.fullmatch(name):
        return 0
    try:
        return parse_lease_id(name)
    except InvalidInputError:
        return 0


def parse_queued_name(name: str) -> int:
    """The place in the queue that `Q4352` names; 0 for anything else."""
    try:
        return parse_queued_id(name) if name.startswith("Q") else 0
    except InvalidInputError:
        return 0


def unresolved_text(found: Resolved) -> str:
    """Why a name leads to no one device."""
    if found.candidates:
        return f"{found.text} could be {', '.join(found.candidates)}: name one of these, or the host"
    return f"no device {found.text} is known"


def part_of(state: State, device: DeviceId) -> tuple[DeviceId, ...]:
    """The device, and the one that is leased in its place."""
    return tuple(dict.fromkeys((device, conflicts.physical_device(device))))


def _decided_text(answer: Answer) -> str:
    if answer.refusal is not None:
        return f"refused ({answer.refusal.code}) at position {answer.position}: {answer.refusal.message}"
    of = f" as {lease_id_text(answer.lease)}" if answer.lease else ""
    now = f"; the lease is {answer.state} now" if answer.state else ""
    return f"{answer.outcome} at position {answer.position}{of}{now}"
