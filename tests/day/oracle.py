"""Who had what, when, and what devices were like: told from the raw JSON of the records alone, by brute force, without
any code of ours.

log = RawLog()
log.add(1, body)
log.owners_at(position)  # device -> Held, by looking at every tenure that there ever was
log.devices_at(position)  # device -> Seen
"""

import json
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

EVENTS_PER_RECORD = 256
ENDS = {
    "lease_released": "released",
    "lease_expired": "expired",
    "lease_outlived": "outlived",
    "lease_revoked": "revoked",
    "prepare_failed": "failed",
}
"""How a lease may end."""
_OF_LEASES = ("device_freed", "device_prepared", "device_given_back", "device_quarantined")
"""What is told of a device, and says nothing of what it is like."""


@dataclass
class Held:
    """One device under one lease, from its grant until it was free again; 0: not yet."""

    device: str
    lease: int
    holder: str
    principal: str
    tenant: str
    from_position: int
    from_ns: int
    ended: str = ""
    ended_position: int = 0
    ended_ns: int = 0
    freed_position: int = 0
    freed_ns: int = 0

    def covers(self, position: int) -> bool:
        """Whether it is this device's tenure behind the event at `position`."""
        return self.from_position <= position and not (0 < self.freed_position <= position)

    def told_at(self, position: int) -> tuple[object, ...]:
        """What is to be said of it there; how it ended and was freed also where that came later."""
        state = "ending" if 0 < self.ended_position <= position else "leased"
        return (
            self.device, f"L{self.lease}", self.holder, self.principal, self.tenant, state,
            self.from_position, self.from_ns, self.ended, self.ended_position, self.ended_ns,
            self.freed_position, self.freed_ns,
        )  # fmt: skip


@dataclass
class Seen:
    """A device from a position on."""

    position: int
    is_there: bool
    flaps: int
    description: dict[str, Any]


@dataclass
class Domain:
    """A domain from a position on. `uses`: word and use."""

    position: int
    is_there: bool
    agent: str
    since: tuple[int, int]
    """Position and time of the start of its incarnation."""
    uses: frozenset[tuple[str, str]]
    description: dict[str, Any]


@dataclass
class Ordered:
    """What a host was told to do, and how it ended: `order_carried_out` or `order_failed`, one after the other."""

    host: str
    what: dict[str, Any]
    ends: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Effect:
    """An event that answers a request."""

    position: int
    type: str
    lease: int


@dataclass
class RawLog:
    """All records, one after the other, and what they say."""

    records: int = 0
    events: int = 0
    types: Counter[str] = field(default_factory=Counter)
    tenures: list[Held] = field(default_factory=list)
    effects: dict[tuple[str, str], list[Effect]] = field(default_factory=dict)
    """By principal and request id."""
    devices: dict[str, list[Seen]] = field(default_factory=dict)
    domains: dict[str, list[Domain]] = field(default_factory=dict)
    orders: dict[int, Ordered] = field(default_factory=dict)
    positions: list[int] = field(default_factory=list)
    """Of all events."""
    decided: list[int] = field(default_factory=list)
    """When each record was decided, in their order."""
    _living: dict[int, list[Held]] = field(default_factory=dict)

    def add(self, sequence: int, body: bytes) -> None:
        """The next record."""
        assert sequence == self.records + 1, f"{sequence} behind {self.records}"
        record = json.loads(body)
        assert not self.decided or record["decided_at_ns"] >= self.decided[-1], "time went back"
        self.records = sequence
        self.decided.append(record["decided_at_ns"])
        events = [event for step in record["steps"] for event in step["events"]]
        for index, event in enumerate(events):
            position = sequence * EVENTS_PER_RECORD + index
            self.events += 1
            self.positions.append(position)
            self.types[event["type"]] += 1
            self._take(position, record["decided_at_ns"], event)
            self._see(position, event)
            self._see_domain(position, record["decided_at_ns"], event)
            self._order(position, event)

    def _take(self, position: int, at_ns: int, event: dict[str, Any]) -> None:
        kind = event["type"].partition(".")[0]
        request: dict[str, Any] = event.get("request") or {}
        if request:
            lease = position if kind == "lease_granted" else event.get("lease", 0)
            key = (request["principal"], request["request_id"])
            self.effects.setdefault(key, []).append(Effect(position, kind, lease))
        if kind == "lease_granted":
            principal = request["principal"]
            tenant = principal.rpartition("@")[2] if "@" in principal else principal
            held = [
                Held(device, position, event["holder"], principal, tenant, position, at_ns)
                for device in event["devices"]
            ]
            self.tenures += held
            self._living[position] = held
        elif kind in ENDS:
            is_forced = kind == "lease_revoked" and event.get("force", False)
            for each in self._living[event["lease"]]:
                if each.ended and is_forced:
                    continue  # what had ended is taken by force
                assert not each.ended, f"L{event['lease']} ends twice"
                each.ended, each.ended_position, each.ended_ns = ENDS[kind], position, at_ns
        elif kind == "device_freed" and event["lease"]:
            (freed,) = (each for each in self._living[event["lease"]] if each.device == event["device"])
            assert freed.ended, f"{freed.device} is freed while L{freed.lease} lives"
            assert not freed.freed_position, f"{freed.device} is freed twice"
            freed.freed_position, freed.freed_ns = position, at_ns

    def _see(self, position: int, event: dict[str, Any]) -> None:
        kind = event["type"].partition(".")[0]
        if not kind.startswith("device_") or kind in _OF_LEASES:
            return
        key = event.get("key") or event["device"]["key"]
        rows = self.devices.setdefault(f"{event['host']}/{key}", [])
        flaps = (event.get("how") or {}).get("flaps", 0)
        if kind == "device_appeared":
            assert not rows, f"{key} appears twice, at {position}"
            rows.append(Seen(position, True, flaps, event["device"]))
            return
        before = rows[-1]
        if kind == "device_replaced":
            rows.append(Seen(position, True, flaps, event["device"]))
            return
        # What is away may flap: it came and went again.
        is_there = before.is_there if kind == "device_flapped" else kind != "device_missing"
        was_there = before.is_there if kind == "device_flapped" else kind != "device_reappeared"
        assert before.is_there == was_there, f"{kind} of {key} at {position}"
        description = event.get("device", before.description)
        rows.append(Seen(position, is_there, before.flaps + flaps, description))

    def _see_domain(self, position: int, at_ns: int, event: dict[str, Any]) -> None:
        kind = event["type"].partition(".")[0]
        if not kind.startswith(("domain_", "attachment_")):
            return
        described = event["domain"] if isinstance(event.get("domain"), dict) else {}
        key = described.get("key") or event.get("key") or event["domain"]
        rows = self.domains.setdefault(f"{event['host']}/{key}", [])
        before = rows[-1] if rows and rows[-1].is_there else None
        assert (before is None) == (kind == "domain_appeared"), f"{kind} of {key} at {position}"
        if before is None:
            rows.append(Domain(position, True, event["agent"], (position, at_ns), frozenset(), described))
            return
        since = (position, at_ns) if kind == "domain_started" else before.since
        use = frozenset({(event["device"], event["use"])}) if kind.startswith("attachment_") else frozenset()
        assert not use or (kind == "attachment_gone") == (use <= before.uses), f"{kind} of {key} at {position}"
        assert kind != "domain_vanished" or not before.uses, f"{key} vanishes with {before.uses}, at {position}"
        rows.append(
            Domain(
                position, kind != "domain_vanished", before.agent, since, before.uses ^ use,
                described or before.description,
            )
        )  # fmt: skip

    def domains_at(self, position: int) -> dict[str, Domain]:
        """The domains that were there behind `position`."""
        before = {domain: [row for row in rows if row.position <= position] for domain, rows in self.domains.items()}
        return {domain: rows[-1] for domain, rows in before.items() if rows and rows[-1].is_there}

    def _order(self, position: int, event: dict[str, Any]) -> None:
        kind = event["type"].partition(".")[0]
        if kind == "host_ordered":
            self.orders[position] = Ordered(event["host"], event["order"])
        elif kind in ("order_carried_out", "order_failed"):
            order = self.orders[event["order"]]
            assert order.host == event["host"], f"order {event['order']} ends on {event['host']}"
            if order.ends:
                (before,) = order.ends
                assert before.get("timed_out"), f"order {event['order']} ends twice"
            assert bool(order.ends) == event.get("late", False), f"order {event['order']} is late, or is not"
            order.ends.append(event)

    def devices_at(self, position: int) -> dict[str, Seen]:
        """What each device was like behind `position`."""
        before = {device: [row for row in rows if row.position <= position] for device, rows in self.devices.items()}
        return {device: rows[-1] for device, rows in before.items() if rows}

    def end_at(self, ns: int) -> int:
        """Behind which position the time `ns` is: that of the last record decided then or before; 0: before all."""
        sequence = bisect_right(self.decided, ns)
        return sequence * EVENTS_PER_RECORD + EVENTS_PER_RECORD - 1 if sequence else 0

    def owners_at(self, position: int) -> dict[str, Held]:
        """Whose each device was behind `position`: all tenures are looked at, and no two may be at one device."""
        found: dict[str, Held] = {}
        for each in self.tenures:
            if each.covers(position):
                assert each.device not in found, f"{each.device} has two owners at {position}"
                found[each.device] = each
        return found
