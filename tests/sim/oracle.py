"""The judge: reads each record as plain JSON, keeps its own small books, and raises when a promise is broken.

It shares nothing with the core but the words, so that an error in the core is not repeated here.
"""

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Final

from tests.sim.books import Device, Lease, Source
from tests.sim.domainbook import Bond, DomainBook
from tests.sim.handbook import BINDER, HandBook
from tests.sim.orderbook import OrderBook
from tests.sim.schedulebook import BY_REQUEST, ScheduleBook
from tests.sim.wishes import tied_to
from tests.sim.world import ViolationError

GRACE_NS = 30 * 10**9
HOUR_NS = 3_600 * 10**9


@dataclass
class Oracle:
    """Its own picture of the ledger, checked record by record."""

    chain: str = "0" * 64
    era: int = 0
    writer: str = ""
    decided_at_ns: int = 0
    observed_through: int = 0
    grace: tuple[str, int] = ("", 0)
    announced: set[str] = field(default_factory=set)
    """Who has said that it decides from now on."""
    devices: dict[str, Device] = field(default_factory=dict)
    leases: dict[int, Lease] = field(default_factory=dict)
    sources: dict[tuple[str, str], Source] = field(default_factory=dict)
    """By host and agent."""
    domains: DomainBook = field(default_factory=DomainBook)
    hands: HandBook = field(default_factory=HandBook)
    decided: dict[tuple[str, str], int] = field(default_factory=dict)
    """(principal, request id) -> position of the event that decided it."""
    kinds: dict[int, str] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    schedule: ScheduleBook = field(init=False)
    orders: OrderBook = field(init=False)

    def __post_init__(self) -> None:
        self.orders = OrderBook(self.devices, self.leases, self.hands, self.sources, self._domains_with)
        self.schedule = ScheduleBook(self.devices, self.leases, self._has_let_go)

    def record(self, sequence: int, body: bytes) -> None:
        """Judge the record at `sequence`."""
        record = json.loads(body)
        _must(record["prev"] == self.chain, "chain", f"record {sequence} does not follow the one before")
        _must(record["decided_at_ns"] >= self.decided_at_ns, "time", "the log's time goes back")
        _must(record["observed_through"] >= self.observed_through, "intake", "the place in OBSERVED goes back")
        self.chain = hashlib.sha256(body).hexdigest()
        self.decided_at_ns = record["decided_at_ns"]
        self.writer = record["writer"]
        self.observed_through = record["observed_through"]
        self.schedule.now_ns, self.schedule.era = self.decided_at_ns, record["era"]
        index = 0
        for step in record["steps"]:
            self.schedule.queue.lost.clear()
            decides = self.writer == self.grace[0]  # who takes over with a tick does what is due with the next
            for event in step["events"]:
                kind = event["type"].partition(".")[0]
                self.seen.add(kind)
                getattr(self, f"_{kind}", self._nothing)(sequence * 256 + index, event, step["input"], record)
                if kind in BY_REQUEST:
                    self._decide_once(sequence * 256 + index, event["request"])
                    getattr(self.schedule, kind)(sequence * 256 + index, event, step["input"])
                if kind in _OF_ORDERS:
                    self._order(sequence * 256 + index, kind, event, step["input"])
                if kind in _OF_DOMAINS:
                    getattr(self.domains, kind)(event, step["input"])
                if self.domains.bonds:
                    polled = (host for host, agent in self.sources if agent == "poller")
                    self.domains.follow_bonds(frozenset(filter(self._is_fresh, polled)), self.decided_at_ns)
                self.kinds[sequence * 256 + index] = kind
                index += 1
            if step["input"]["type"].startswith("tick") and decides:
                self.schedule.ticked()
        _must(0 < index <= 256, "record", f"{index} events")
        _must(record["era"] == self.era, "era", f"of era {record['era']}, not {self.era}")

    def _nothing(self, _position: int, _event: dict[str, Any], _given: dict[str, Any], _record: dict[str, Any]) -> None:
        pass

    def _ledger_restored(self, position: int, event: dict[str, Any], _g: dict[str, Any], rec: dict[str, Any]) -> None:
        _must(event["era"] > self.era, "era", f"era {event['era']} behind {self.era}")
        _must(event["through"] == position // 256 - 1, "era", "another record than the last one is named")
        _must(event["until_ns"] >= rec["decided_at_ns"] + GRACE_NS, "grace", "too short")
        self.era = event["era"]
        self.announced.add(event["writer"])
        # Nobody may let a lease expire who has not begun to decide since.
        self.grace = ("", 0)
        for source in self.sources.values():
            source.stale = True

    # --- observations ---------------------------------------------------------------------------------------------

    def _source_started(self, _p: int, event: dict[str, Any], _g: dict[str, Any], _r: dict[str, Any]) -> None:
        before = self.sources.get(_source_of(event))
        _must(before is None or event["run"] > before.run, "intake", "an older run took over")
        self.sources[_source_of(event)] = Source(event["run"])

    def _observations_accepted(self, _p: int, event: dict[str, Any], _g: dict[str, Any], _r: dict[str, Any]) -> None:
        source = self.sources[_source_of(event)]
        _must(event["run"] == source.run, "intake", "words of another run were taken")
        _must(event["counter"] == source.counter + 1, "intake", f"counter {event['counter']} after {source.counter}")
        source.counter = event["counter"]

    def _report_requested(self, _p: int, event: dict[str, Any], _g: dict[str, Any], _r: dict[str, Any]) -> None:
        source = self.sources[_source_of(event)]
        _must(event["counter"] > source.counter + 1, "intake", "a report was asked for without a gap")
        source.counter, source.stale = event["counter"], True

    def _picture_completed(self, _p: int, event: dict[str, Any], _g: dict[str, Any], _r: dict[str, Any]) -> None:
        self.sources[_source_of(event)].stale = False
        self.hands.picture_completed(event)

    def _host_registered(self, _p: int, event: dict[str, Any], _g: dict[str, Any], _r: dict[str, Any]) -> None:
        self.hands.host_registered(event)

    def _host_declared_dead(
        self, position: int, event: dict[str, Any], given: dict[str, Any], _r: dict[str, Any]
    ) -> None:
        self._decide_once(position, event["request"])
        _must(given["principal"] == event["request"]["principal"], "principal", "declared dead for another")
        sources = {agent: row for (host, agent), row in self.sources.items() if host == event["host"]}
        self.hands.host_declared_dead(event, {agent: row.stale for agent, row in sources.items()})
        for row in sources.values():
            row.stale = True

    def _host_went_stale(self, _p: int, event: dict[str, Any], _g: dict[str, Any], _r: dict[str, Any]) -> None:
        self.sources[_source_of(event)].stale = True

    _source_stopped = _host_went_stale

    def _source_went_blind(self, _p: int, event: dict[str, Any], _g: dict[str, Any], _r: dict[str, Any]) -> None:
        _must(not self.sources[_source_of(event)].blind, "domains", "it was blind already")
        self.sources[_source_of(event)].blind = True

    def _source_sees_again(self, _p: int, event: dict[str, Any], _g: dict[str, Any], _r: dict[str, Any]) -> None:
        _must(self.sources[_source_of(event)].blind, "domains", "it was not blind")
        self.sources[_source_of(event)].blind = False

    def _agent_retired(self, position: int, event: dict[str, Any], given: dict[str, Any], _r: dict[str, Any]) -> None:
        self._decide_once(position, event["request"])
        _must(given["principal"] == event["request"]["principal"], "principal", "retired for another")
        _must(self.sources.pop(_source_of(event)).stale, "domains", "an agent that is heard was retired")
        self.domains.forget(event["host"], event["agent"])
        watcher = self.sources.get((event["host"], "watcher"))
        self.hands.agent_retired(event, is_told=watcher is not None and not watcher.stale)

    def _is_fresh(self, host: str) -> bool:
        """Whether all that paint a picture of a host do so, and its devices are among it."""
        painting = {agent: row.is_fresh for (there, agent), row in self.sources.items() if there == host}
        painting.pop("creator", None)
        return all(painting.values()) and "watcher" in painting and host not in self.hands.dead

    def _host_came_back(self, _p: int, event: dict[str, Any], _g: dict[str, Any], _r: dict[str, Any]) -> None:
        self.sources[_source_of(event)].stale = False

    def _device_appeared(self, _p: int, event: dict[str, Any], _g: dict[str, Any], _r: dict[str, Any]) -> None:
        described = event["device"]
        row = self.devices.setdefault(f"{event['host']}/{described['key']}", Device())
        row.users, row.is_missing = tuple(described.get("in_use_by", ())), False
        row.usb_id = described.get("vendor_id", ""), described.get("product_id", "")
        row.is_bare = not described.get("bridge") and not described.get("protections") and not described.get("hub")
        self.schedule.described(f"{event['host']}/{described['key']}", described)

    _device_changed = _device_reappeared = _device_appeared

    def _device_replaced(self, p: int, event: dict[str, Any], g: dict[str, Any], r: dict[str, Any]) -> None:
        device = f"{event['host']}/{event['device']['key']}"
        self._lost(p, device)
        self._device_appeared(p, event, g, r)
        row = self.devices[device]
        row.replaced_under = row.lease or row.replaced_under

    def _device_missing(self, p: int, event: dict[str, Any], _g: dict[str, Any], _r: dict[str, Any]) -> None:
        self._lost(p, f"{event['host']}/{event['key']}")
        self.devices[f"{event['host']}/{event['key']}"].is_missing = True

    def _lost(self, position: int, device: str) -> None:
        """It has failed, if somebody has it, and it is not just its host that does not show it (yet)."""
        is_shown = self._is_fresh(device.partition("/")[0]) and not self.devices[device].is_missing
        if is_shown and self.schedule.is_had(device):
            self.schedule.failed(position, device)

    # --- leases ---------------------------------------------------------------------------------------------------

    def _grace_started(self, _p: int, event: dict[str, Any], _g: dict[str, Any], record: dict[str, Any]) -> None:
        _must(event["until_ns"] >= record["decided_at_ns"] + GRACE_NS, "grace", "too short")
        self.grace = (event["writer"], event["until_ns"])
        self.announced.add(event["writer"])

    def _lease_granted(
        self, position: int, event: dict[str, Any], given: dict[str, Any], record: dict[str, Any]
    ) -> None:
        holder, mode = (event["request"]["principal"], event["holder"]), event.get("mode", "")
        if "queued" in event:
            self.decided[event["request"]["principal"], event["request"]["request_id"]] = position
        else:
            self._decide_once(position, event["request"])
            _must(given["principal"] == holder[0], "principal", "granted to another")
            _check_timely(event["request"]["issued_at_ns"], record["decided_at_ns"])
        for device in event["devices"] if mode != "admin" else ():
            found = self.obstacle(device, holder, event["devices"], shares=mode == "shared")
            _must(not found, *(found or ("", "")))
            self.hands.granted(device)
        for device in event["devices"] if not mode else ():
            self.devices[device].lease = position
        bond = event.get("bond") or {}
        row = Lease(holder[0], holder[1], event["devices"], event["expires_at_ns"], bond.get("uuid", ""))
        row.tenant, row.mode, row.token, row.ttl_ms = event["tenant"], mode, position, event["ttl_ms"]
        row.tolerates, row.reserved_for = tuple(event.get("tolerates", ())), event.get("reserved_for", 0)
        self.leases[position] = row
        if bond and not bond.get("keep"):
            hosts = frozenset(device.partition("/")[0] for device in event["devices"])
            self.domains.bonds[position] = Bond(bond["uuid"], bond.get("gone_ms", 0), hosts)
        self.schedule.granted(position, event, given)

    def obstacle(
        self, device: str, holder: tuple[str, str], together: Collection[str], *, whoever_has_it: bool = False,
        shares: bool = False,
    ) -> tuple[str, str] | None:  # fmt: skip
        """Which promise would be broken, and how, if this were granted now; `None`: none.

        `whoever_has_it`: what others have on lease is looked at as free. `shares`: it would be shared with others.
        """
        row, host = self.devices[device], device.partition("/")[0]
        if row.lease and not whoever_has_it:
            return "one owner", f"{device} was granted while {row.lease} holds it"
        if not row.is_bare:
            return "protected", f"{device} was granted"
        if row.is_missing or (row.users and not (row.lease and whoever_has_it)):
            return "grant", f"{device} is missing or used"
        if not self._is_fresh(host):
            return "grant", f"{device} of a stale host was granted"
        if not (row.lease and whoever_has_it) and (self._domains_with(device) or self._really_used(device)):
            return "domains", f"{device} was granted, but, as is told or really, a domain has it"
        if self.orders.on(device):
            return "orders", f"{device} was granted while an order is about it"
        return self._not_apart(device, holder, together, whoever_has_it=whoever_has_it, shares=shares)

    def _domains_with(self, device: str) -> list[str]:
        return self.domains.users(device, self.devices[device].usb_id)

    def _really_used(self, device: str) -> str:
        source = self.sources.get((device.partition("/")[0], "poller"))
        return self.domains.really_used(device, source.run, source.counter) if source else ""

    def _not_apart(
        self, device: str, holder: tuple[str, str], together: Collection[str], *, whoever_has_it: bool, shares: bool
    ) -> tuple[str, str] | None:
        for other, by in tied_to(device, self.devices):
            if other in together:
                continue
            row = self.devices[other]
            if not row.lease and not row.is_missing and self._domains_with(other):
                return "domains", f"{device} was granted while a domain has {other}"
            for each in filter(None, (row.lease, *(() if shares else self.schedule.sharers(other)))):
                lease = self.leases[each]
                if not whoever_has_it and not (by == "holder" and (lease.principal, lease.holder) == holder):
                    return "one owner", f"{device} was granted while {other} is another's"
        return None

    def _has_let_go(self, device: str) -> bool:
        host = device.partition("/")[0]
        return host in self.hands.dead or (self._is_fresh(host) and not self._domains_with(device))

    def _owned(self, event: dict[str, Any], given: dict[str, Any], record: dict[str, Any]) -> Lease:
        lease = self.leases[event["lease"]]
        _must(lease.ended == 0, "token", f"lease {event['lease']} is over, yet was acted on")
        _must(given["request"]["token"] == self.era << 47 | lease.token, "token", "another token was taken")
        _must(given["principal"] == lease.principal, "principal", "acted on another's lease")
        _must(record["decided_at_ns"] >= 0, "time", "")
        return lease

    def _lease_renewed(self, position: int, event: dict[str, Any], given: dict[str, Any], rec: dict[str, Any]) -> None:
        lease = self._owned(event, given, rec)
        lease.expires_at_ns, lease.ttl_ms = event["expires_at_ns"], event["ttl_ms"]
        self.decided[event["request"]["principal"], event["request"]["request_id"]] = position

    def _lease_released(self, position: int, event: dict[str, Any], given: dict[str, Any], rec: dict[str, Any]) -> None:
        if given["request"]["type"].startswith("reattach"):
            self._reattached(position, event, given)
            return
        if given["request"]["type"].startswith("switch"):
            self.schedule.let_go_by_switch(event["lease"], given)
            self._end_lease(position, event["lease"])
            return
        self._decide_once(position, event["request"])
        self._owned(event, given, rec).ended = position // 256
        self.domains.bonds.pop(event["lease"], None)

    def _reattached(self, position: int, event: dict[str, Any], given: dict[str, Any]) -> None:
        """One of all leases of a domain that end by one request."""
        lease, ref = self.leases[event["lease"]], event["request"]
        _must(lease.ended == 0, "token", f"lease {event['lease']} is over, yet was released")
        _must(given["principal"] == lease.principal, "principal", "released another's lease")
        _must(lease.domain == given["request"]["domain"], "domains", "released what is for another domain")
        if self.decided.setdefault((ref["principal"], ref["request_id"]), position) // 256 != position // 256:
            raise ViolationError(f"once: {ref} was decided twice")
        self._end_lease(position, event["lease"])

    def _end_lease(self, position: int, lease: int) -> None:
        self.leases[lease].ended = position // 256
        self.domains.bonds.pop(lease, None)

    def _lease_revoked(self, position: int, event: dict[str, Any], given: dict[str, Any], _r: dict[str, Any]) -> None:
        if given["type"].startswith("tick"):
            self.schedule.evicted(event)
            self._end_lease(position, event["lease"])
            return
        self._decide_once(position, event["request"])
        asked = given["request"]
        same = (asked["lease"], asked.get("force", False)) == (event["lease"], event.get("force", False))
        _must(same and asked["type"].startswith("revoke"), "revoke", "not as it was asked for")
        _must(given["principal"] == event["request"]["principal"], "principal", "revoked for another")
        lease = event["lease"]
        if self.leases[lease].ended:
            _must(event.get("force", False), "revoke", f"lease {lease} is over, yet was revoked")
            _must(lease not in self.hands.forced, "revoke", f"lease {lease} is taken by force twice")
            _must(any(row.lease == lease for row in self.devices.values()), "revoke", f"lease {lease} holds nothing")
        else:
            self._end_lease(position, lease)
        if event.get("force"):
            self.hands.forced.add(event["lease"])

    def _lease_expired(self, position: int, event: dict[str, Any], _g: dict[str, Any], record: dict[str, Any]) -> None:
        lease = self.leases[event["lease"]]
        _must(lease.ended == 0, "expiry", "a lease that is over expired")
        _must(record["decided_at_ns"] >= lease.expires_at_ns, "expiry", "before its time")
        bond = self.domains.bonds.pop(event["lease"], None)
        _must(bond is None or not bond.is_seen, "domains", "a lease expired though its domain was seen")
        self._end_by_time(position, lease, record)

    def _end_by_time(self, position: int, lease: Lease, record: dict[str, Any]) -> None:
        writer, until_ns = self.grace
        _must(record["writer"] == writer and record["decided_at_ns"] >= until_ns, "grace", "expired within grace")
        lease.ended = position // 256

    def _lease_outlived(
        self, position: int, event: dict[str, Any], given: dict[str, Any], record: dict[str, Any]
    ) -> None:
        lease = self.leases[event["lease"]]
        _must(lease.ended == 0, "expiry", "a lease that is over was outlived")
        bond = self.domains.bonds.pop(event["lease"], None)
        if bond is None:
            raise ViolationError(f"domains: {event['lease']} ended with a domain that it was not bound to")
        if given.get("agent") == BINDER:
            says = {"type": "let_go.v1", "lease": event["lease"]} in given["observations"]
            _must(says and bond.hosts == {given["host"]}, "domains", f"{event['lease']} was let go by another")
            lease.ended = position // 256
            return
        _must(bond.gone_ns > 0, "domains", f"{event['lease']} ended, but its domain is there, or nobody can tell")
        gone_ns = record["decided_at_ns"] - bond.gone_ns
        _must(gone_ns >= bond.gone_ms * 10**6, "domains", f"{event['lease']} ended {gone_ns} ns after its domain had")
        _must(event["domain"] == bond.uuid and event["gone_since_ns"] == bond.gone_ns, "domains", "told otherwise")
        self._end_by_time(position, lease, record)

    def _device_freed(self, position: int, event: dict[str, Any], _g: dict[str, Any], _r: dict[str, Any]) -> None:
        row = self.devices[event["device"]]
        _must(row.lease == event["lease"], "free", "freed of a lease that does not hold it")
        self.schedule.freed(event["device"], event["lease"])
        if not row.lease:
            # In quarantine although the log knows of no lease: an operator has looked.
            _must(bool(self.hands.row(event["device"]).quarantine), "free", "freed, but was free")
            self._decide_once(position, event["request"])
            self.hands.freed(event["device"], 0, by_word=True)
            return
        _must(self.leases[event["lease"]].ended > 0, "free", "freed while its lease lives")
        if "request" in event:
            self._decide_once(position, event["request"])
        if not self.hands.freed(event["device"], event["lease"], by_word="request" in event):
            host = event["device"].partition("/")[0]
            is_shown = self._is_fresh(host) and (row.is_missing or not row.users)
            _must(host in self.hands.managed or is_shown, "free", f"{event['device']} freed without evidence")
            users = self._domains_with(event["device"]) or self._really_used(event["device"])
            _must(not users, "free", f"{event['device']} freed, but a domain has it")
        row.lease = 0

    # --- what binders say -------------------------------------------------------------------------------------------

    def _device_prepared(self, _p: int, event: dict[str, Any], given: dict[str, Any], _r: dict[str, Any]) -> None:
        self.hands.device_prepared(event, given, is_its=self._lives_and_holds(event))

    def _prepare_failed(self, position: int, event: dict[str, Any], given: dict[str, Any], _r: dict[str, Any]) -> None:
        self.hands.prepare_failed(event, given, is_its=self._lives_and_holds(event))
        self.schedule.failed(position, f"{event['host']}/{event['key']}")
        self._end_lease(position, event["lease"])

    def _lives_and_holds(self, event: dict[str, Any]) -> bool:
        lease = self.leases.get(event["lease"])
        return lease is not None and not lease.ended and f"{event['host']}/{event['key']}" in lease.devices

    def _device_given_back(self, _p: int, event: dict[str, Any], given: dict[str, Any], _r: dict[str, Any]) -> None:
        held_by = self.devices[f"{event['host']}/{event['key']}"].lease
        lives = bool(held_by) and not self.leases[held_by].ended
        self.hands.device_given_back(event, given, lease=held_by, lives=lives)

    def _device_quarantined(self, p: int, event: dict[str, Any], given: dict[str, Any], _r: dict[str, Any]) -> None:
        if event.get("evidence"):
            self.schedule.device_quarantined(event, given)
            return
        if not self.hands.row(f"{event['host']}/{event['key']}").quarantine:
            self.schedule.failed(p, f"{event['host']}/{event['key']}")
        self.hands.device_quarantined(event, given)

    def _drift_detected(self, position: int, event: dict[str, Any], _g: dict[str, Any], _r: dict[str, Any]) -> None:
        self.hands.drift_detected(position, event)

    def _drift_resolved(self, _p: int, event: dict[str, Any], _g: dict[str, Any], _r: dict[str, Any]) -> None:
        self.hands.drift_resolved(event)

    def _request_refused(self, position: int, event: dict[str, Any], _g: dict[str, Any], rec: dict[str, Any]) -> None:
        if event.get("refusal", {}).get("code") == "request_from_future":
            issued_at_ns = event["request"]["issued_at_ns"]
            _must(issued_at_ns > rec["decided_at_ns"] + HOUR_NS, "time", "refused as too early, but it is not")
        self.decided.setdefault((event["request"]["principal"], event["request"]["request_id"]), position)

    _refusals_repeated = _request_refused

    # --- waiting, keeping, handing on -------------------------------------------------------------------------------

    def _request_queued(self, p: int, event: dict[str, Any], given: dict[str, Any], _r: dict[str, Any]) -> None:
        self._decide_once(p, event["request"])
        _check_timely(event["request"]["issued_at_ns"], self.decided_at_ns)
        self.schedule.queue.request_queued(p, event, given, self.decided_at_ns)

    def _queued_moved(self, _p: int, event: dict[str, Any], _g: dict[str, Any], _r: dict[str, Any]) -> None:
        self.schedule.queue.queued_moved(event)

    def _request_withdrawn(self, p: int, event: dict[str, Any], given: dict[str, Any], _r: dict[str, Any]) -> None:
        self._decide_once(p, event["request"])
        self.schedule.queue.request_withdrawn(p, event, given)

    def _waiting_ended(self, p: int, event: dict[str, Any], _g: dict[str, Any], record: dict[str, Any]) -> None:
        by_decider = record["writer"] == self.grace[0] and record["decided_at_ns"] >= self.grace[1]
        _must(by_decider, "grace", "it waits no more, by another than the decider, or within grace")
        self.schedule.queue.waiting_ended(p, event, self.decided_at_ns)

    def _leases_renewed(self, p: int, event: dict[str, Any], given: dict[str, Any], _r: dict[str, Any]) -> None:
        self.decided[event["request"]["principal"], event["request"]["request_id"]] = p
        self.schedule.leases_renewed(event, given)

    def _order(self, position: int, kind: str, event: dict[str, Any], given: dict[str, Any]) -> None:
        if "request" in event:
            self._decide_once(position, event["request"])
        if event.get("timed_out"):
            until_ns = self.grace[1]
            _must(self.writer == self.grace[0] and self.decided_at_ns >= until_ns, "grace", "timed out within grace")
        getattr(self.orders, kind)(position, event, given, self.decided_at_ns)

    def _decide_once(self, position: int, ref: dict[str, Any]) -> None:
        key = (ref["principal"], ref["request_id"])
        _must(key not in self.decided, "once", f"{key} was decided twice, first at {self.decided.get(key)}")
        self.decided[key] = position

    def ended_by(self, lease: int, sequence: int) -> bool:
        """Whether the records up to this one end a lease."""
        return 0 < self.leases[lease].ended <= sequence

    def may_act(self, device: str, token: int) -> bool:
        """Whether a token is the one that may act on a device."""
        if token >> 47 != self.era:
            return False
        position = self.schedule.by_token(token % 2**47)
        lease, row = self.leases.get(position), self.devices[device]
        return lease is not None and lease.acts and row.lease == position and row.replaced_under != position


_OF_DOMAINS: Final = frozenset(
    f"{what}_{how}"
    for what, hows in (("domain", ("appeared", "changed", "started", "vanished")), ("attachment", ("seen", "gone")))
    for how in hows
)
_OF_ORDERS: Final = frozenset({"host_ordered", "order_carried_out", "order_failed"})


def _source_of(event: dict[str, Any]) -> tuple[str, str]:
    return event["host"], event["agent"]


def _check_timely(issued_at_ns: int, decided_at_ns: int) -> None:
    ahead_ns = issued_at_ns - decided_at_ns
    _must(-24 * HOUR_NS < ahead_ns <= HOUR_NS, "time", f"issued {ahead_ns // 10**9} s ahead, yet granted")


def _must(holds: bool, promise: str, text: str) -> None:
    if not holds:
        raise ViolationError(f"{promise}: {text}")
