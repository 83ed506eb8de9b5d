"""The judge's book of what operators say of devices, hosts, classes and quotas, and of leases as they change hands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from tests.sim.books import Device, Lease
from tests.sim.queuebook import FOR_EVER, PRIORITY_STEP_NS, QueueBook
from tests.sim.wishes import Description, Wish, matches, wrong_choice
from tests.sim.world import ViolationError

FAILURES_MAX = 2
"""As `run.BOUNDS` has it."""
FAILURE_WINDOW_NS = 24 * 3_600 * 10**9
BY_REQUEST: Final = frozenset(
    {
        "class_set", "class_removed", "quota_set", "cordoned", "uncordoned", "tainted", "untainted", "policy_set",
        "device_cleaned", "device_healed", "lease_transferred", "lease_switched",
    }
)  # fmt: skip
"""What is decided of one request, once, and known to no other book."""
Json = dict[str, Any]


@dataclass
class Taint:
    """Keeps away who does not tolerate it; `evicts_at_ns`: when it ends their leases, if not 0."""

    value: str
    evicts_at_ns: int
    request: tuple[str, str]
    position: int


@dataclass(frozen=True)
class Asker:
    """Who asks for devices, as far as rules look at it."""

    principal: str
    holder: str
    tenant: str
    tolerates: tuple[str, ...] = ()
    mode: str = ""
    place: tuple[int, int] = FOR_EVER


@dataclass
class ScheduleBook:
    """What schedulers and operators have done."""

    devices: dict[str, Device]
    leases: dict[int, Lease]
    has_let_go: Callable[[str], bool]
    """Of a device: its host shows that no domain has it."""
    queue: QueueBook = field(default_factory=QueueBook)
    descriptions: dict[str, Description] = field(default_factory=dict)
    classes: dict[str, str] = field(default_factory=dict)
    quotas: dict[tuple[str, str], int] = field(default_factory=dict)
    """By tenant and class."""
    cordons: set[str] = field(default_factory=set)
    """Hosts and devices."""
    taints: dict[str, dict[str, Taint]] = field(default_factory=dict)
    """Of hosts and devices, by name."""
    policies: dict[str, tuple[int, bool]] = field(default_factory=dict)
    """How many may share it, and whether it must be cleaned."""
    unclean: dict[str, str] = field(default_factory=dict)
    """Behind whom it has to be cleaned."""
    failures: dict[str, dict[int, int]] = field(default_factory=dict)
    """Of a device: positions, and when that was."""
    sick: set[str] = field(default_factory=set)
    """Those that have failed too often."""
    shared: list[int] = field(default_factory=list)
    """Leases that share devices; some may have ended."""
    now_ns: int = 0
    era: int = 0

    # --- what is known of devices -----------------------------------------------------------------------------------

    def described(self, device: str, description: Description) -> None:
        """This is there now."""
        self.descriptions[device] = description

    def missing(self) -> set[str]:
        """What is known, and not there."""
        return {device for device, row in self.devices.items() if row.is_missing}

    def sharers(self, device: str) -> list[int]:
        """The living leases that share a device."""
        self.shared = [lease for lease in self.shared if not self.leases[lease].ended]
        return [lease for lease in self.shared if device in self.leases[lease].devices]

    def failed(self, position: int, device: str) -> None:
        """A device has failed who had it."""
        self.failures.setdefault(device, {})[position] = self.now_ns

    def is_had(self, device: str) -> bool:
        """Whether a living lease has it, alone or with others."""
        lease = self.devices[device].lease
        return bool(lease and not self.leases[lease].ended) or bool(self.sharers(device))

    # --- granting ---------------------------------------------------------------------------------------------------

    def obstacle(self, device: str, asker: Asker) -> str:
        """Which word of an operator, or whose waiting, keeps a device from somebody; empty: nothing of that."""
        marked = (device, device.partition("/")[0])
        if not self.cordons.isdisjoint(marked):
            return "cordoned"
        for target in marked:
            for name, taint in self.taints.get(target, {}).items():
                if not tolerated(asker.tolerates, name, taint.value):
                    return f"tainted as {name}"
        if device in self.sick:
            return "in quarantine for its failures"
        if self.unclean.get(device, asker.tenant) != asker.tenant:
            return f"not cleaned behind {self.unclean[device]}"
        keeper = self.queue.keeper_of(device, asker.place)
        return f"kept for {keeper}" if keeper else ""

    def granted(self, position: int, event: Json, given: Json) -> None:
        """Whether somebody gets what he asked for, and may have it. Behind this it is in `leases`."""
        row = self.leases[position]
        self.shared += [position] if row.mode == "shared" else []
        wish: Wish = given.get("request", {})
        place = self.queue.place(event.get("queued", 0))
        if wish:
            # Who does not wait comes in by his priority all the same, behind those of the same place who do.
            place = (self.now_ns - wish.get("priority", 0) * PRIORITY_STEP_NS, FOR_EVER[1])
        if "queued" in event:
            wish = self.queue.granted(position, event).wish
        elif wish.get("type", "").startswith("lease") and (wish.get("mode", "") == "" or wish.get("needs")):
            _must(not wish.get("wait_ms") or "queued" not in event, "grant", "it waited, and nobody says so")
        if wish.get("type", "").startswith("reserve"):
            self._reserved(event, wish)
        else:
            _must("reserved_for" not in event, "switch", "a lease is reserved, but that was not asked for")
            _must(event.get("mode", "") == wish.get("mode", ""), "mode", "another than was asked for")
            _must(list(event.get("tolerates", [])) == wish.get("tolerates", []), "taint", "it tolerates another thing")
        if wish.get("needs"):
            self._check_choice(event, wish)
        if row.mode != "admin":
            asker = Asker(row.principal, row.holder, row.tenant, row.tolerates, row.mode, place)
            for device in event["devices"]:
                found = self.obstacle(device, asker)
                _must(not found, "grant", f"{device} was granted although it is {found}")
                self._check_shared(device, position, row)
            self._charge(row, event)

    def _reserved(self, event: Json, wish: Wish) -> None:
        source = self.leases[wish["lease"]]
        _must(event.get("reserved_for") == wish["lease"], "switch", "reserved for another lease than was asked for")
        _must(not source.ended and wish["token"] % 2**47 == source.token, "switch", "reserved for a lease that is over")
        same = (source.principal, source.holder) == (event["request"]["principal"], event["holder"])
        _must(same, "switch", "reserved for another's lease")

    def _check_choice(self, event: Json, wish: Wish) -> None:
        considered = event["search"]["needs"]
        chosen = {each["need"]: list(each.get("devices", ())) for each in considered}
        option = {each["need"]: each.get("option", 0) for each in considered}
        every = [device for devices in chosen.values() for device in devices]
        _must(sorted(every) == sorted(event["devices"]), "whole", "what was chosen is not what was granted")
        wrong = wrong_choice(wish, chosen, option, self.classes, self.descriptions, self.missing())
        _must(not wrong, "whole", wrong)

    def _check_shared(self, device: str, position: int, row: Lease) -> None:
        others = [lease for lease in self.sharers(device) if lease != position]
        if row.mode == "":
            _must(not others, "one owner", f"{device} was granted to one, while {others} share it")
            return
        _must(len(others) < self.policies.get(device, (1, False))[0], "shared", f"{device} is shared by too many")
        _must(self.policies.get(device, (1, False))[0] > 1, "shared", f"{device} is not to be shared")

    # --- quotas -----------------------------------------------------------------------------------------------------

    def _charge(self, row: Lease, event: Json) -> None:
        mine = [device_class for tenant, device_class in self.quotas if tenant == row.tenant]
        own = {device: tuple(sorted(each for each in mine if self.is_of(device, each))) for device in row.devices}
        told = event.get("charges") or ((),) * len(row.devices)
        same = [tuple(sorted(each)) for each in told] == [own[device] for device in event["devices"]]
        _must(same, "quota", f"charged is {told}, but it is {own}")
        row.charges = {device: set(classes) for device, classes in own.items()}
        for device_class in {each for classes in own.values() for each in classes}:
            used, most = self.used(row.tenant, device_class), self.quotas[row.tenant, device_class]
            _must(used <= most, "quota", f"{row.tenant} has {used} of {device_class or 'all'}, and may have {most}")

    def is_of(self, device: str, device_class: str) -> bool:
        """Whether a device counts against a quota of this class."""
        description = self.descriptions[device]
        return not device_class or matches({"device_class": device_class}, self.classes, device, description)

    def used(self, tenant: str, device_class: str) -> int:
        """How many devices a tenant has that count against this quota."""
        return sum(
            device_class in row.charges.get(device, ()) and self._holds(lease, row, device)
            for lease, row in self.leases.items()
            if row.tenant == tenant
            for device in row.devices
        )

    def _holds(self, lease: int, row: Lease, device: str) -> bool:
        return self.devices[device].lease == lease if row.mode == "" else row.mode == "shared" and not row.ended

    def quota_set(self, _position: int, event: Json, given: Json) -> None:
        """So many may he have; what he has of that counts from here on."""
        key = (event["tenant"], event["device_class"])
        asked = given["request"]
        same = (asked["tenant"], asked.get("device_class", ""), asked["devices_max"]) == (*key, event["devices_max"])
        _must(same, "quota", "set otherwise than was asked for")
        held, is_new = [], key not in self.quotas
        for lease, row in self.leases.items():
            for device in row.devices if row.tenant == key[0] and (is_new or event["devices_max"] < 0) else ():
                row.charges.setdefault(device, set()).discard(key[1])
                if event["devices_max"] >= 0 and self._holds(lease, row, device) and self.is_of(device, key[1]):
                    row.charges[device].add(key[1])
                    held.append(device)
        told = event.get("charged", [])
        _must(set(told) == set(held), "quota", f"{told} count, but had are {held}")
        if event["devices_max"] < 0:
            self.quotas.pop(key, None)
        else:
            self.quotas[key] = event["devices_max"]

    def class_set(self, _position: int, event: Json, given: Json) -> None:
        """From here on this name means this."""
        same = (given["request"]["name"], given["request"]["select"]) == (event["name"], event["select"])
        _must(same, "class", "set otherwise than was asked for")
        self.classes[event["name"]] = event["select"]

    def class_removed(self, _position: int, event: Json, _given: Json) -> None:
        """The name means nothing any more."""
        name = event["name"]
        _must(not any(each == name for _, each in self.quotas), "class", f"{name} is gone, but a quota names it")
        named = (row for row in self.queue.waiting.values() if _names(row.wish, name))
        _must(not any(named), "class", f"{name} is gone, but somebody waits for it")
        del self.classes[name]

    # --- marks ------------------------------------------------------------------------------------------------------

    def cordoned(self, _position: int, event: Json, _given: Json) -> None:
        """Nothing of it is granted."""
        self.cordons.add(_target(event))

    def uncordoned(self, _position: int, event: Json, _given: Json) -> None:
        """It is granted again."""
        _must(_target(event) in self.cordons, "cordon", f"{_target(event)} was not cordoned")
        self.cordons.discard(_target(event))

    def tainted(self, position: int, event: Json, _given: Json) -> None:
        """Who does not tolerate this is kept away."""
        it, ref = event["taint"], event["request"]
        _must(bool(it.get("evicts_at_ns", 0)) == (it.get("effect") == "evict"), "taint", "evicts, or does not, wrongly")
        taint = Taint(it.get("value", ""), it.get("evicts_at_ns", 0), (ref["principal"], ref["request_id"]), position)
        self.taints.setdefault(_target(event), {})[it["name"]] = taint

    def untainted(self, _position: int, event: Json, _given: Json) -> None:
        """It keeps nobody away any more."""
        _must(event["name"] in self.taints.get(_target(event), {}), "taint", f"{event['name']} was not there")
        del self.taints[_target(event)][event["name"]]

    def policy_set(self, _position: int, event: Json, given: Json) -> None:
        """So it may be handed out."""
        it, asked = event["policy"], given["request"]
        told = (it.get("share_max", 1), it.get("clean", False))
        _must(told == (asked.get("share_max", 1), asked.get("clean", False)), "policy", "not as it was asked for")
        self.policies[event["device"]] = told
        if not told[1]:
            self.unclean.pop(event["device"], None)

    def device_cleaned(self, _position: int, event: Json, _given: Json) -> None:
        """Anybody may have it."""
        _must(event["device"] in self.unclean, "clean", f"{event['device']} did not have to be cleaned")
        del self.unclean[event["device"]]

    def device_healed(self, _position: int, event: Json, _given: Json) -> None:
        """Its failures are forgotten."""
        self.sick.discard(event["device"])
        self.failures.pop(event["device"], None)

    def device_quarantined(self, event: Json, given: Json) -> None:
        """It has failed too often: that is told by time, with what it has done."""
        _must(given["type"].startswith("tick"), "failures", "counted by another than time")
        device = f"{event['host']}/{event['key']}"
        known = self.failures.get(device, {})
        _must(device not in self.sick, "failures", f"{device} is in quarantine already")
        times = [known[each] for each in set(event["evidence"]) if each in known]
        is_enough = len(times) >= FAILURES_MAX and max(times) - min(times) <= FAILURE_WINDOW_NS
        _must(is_enough, "failures", f"{device}: {event['evidence']} is no evidence: {known}")
        self.sick.add(device)

    def too_often(self) -> list[str]:
        """Devices that nobody has, that have failed too often, and are not in quarantine."""
        return [
            device
            for device, failed in self.failures.items()
            if device not in self.sick
            and len(failed) >= FAILURES_MAX
            and not (self.devices[device].lease or self.sharers(device))
        ]

    def evicted(self, event: Json) -> None:
        """Its lease ends because of a taint that it does not tolerate."""
        row, ref = self.leases[event["lease"]], event["request"]
        _must(not row.ended, "evict", f"lease {event['lease']} is over, yet was evicted")
        marked = {target for device in row.devices for target in (device, device.partition("/")[0])}
        due = [
            name
            for target in marked
            for name, taint in self.taints.get(target, {}).items()
            if taint.request == (ref["principal"], ref["request_id"])
            and 0 < taint.evicts_at_ns <= self.now_ns
            and not tolerated(row.tolerates, name, taint.value)
        ]
        wants = bool(due) and row.mode != "admin"
        _must(wants, "evict", f"{event['lease']} ends, but no taint wants that (yet)")

    def to_be_evicted(self) -> list[int]:
        """Living leases that a taint should have ended."""
        return [
            lease
            for lease, row in self.leases.items()
            if not row.ended
            and row.mode != "admin"
            and any(
                0 < taint.evicts_at_ns <= self.now_ns and not tolerated(row.tolerates, name, taint.value)
                for device in row.devices
                for target in (device, device.partition("/")[0])
                for name, taint in self.taints.get(target, {}).items()
            )
        ]

    def ticked(self) -> None:
        """The decider has done what was due."""
        late = self.to_be_evicted()
        _must(not late, "evict", f"{late} should have ended by a taint")

    def freed(self, device: str, lease: int) -> None:
        """It is nobody's again, and may have to be cleaned."""
        if self.policies.get(device, (1, False))[1] and lease:
            self.unclean[device] = self.leases[lease].tenant

    # --- keeping and handing on -------------------------------------------------------------------------------------

    def by_token(self, token: int) -> int:
        """Whose token this is; 0: nobody's."""
        return next((lease for lease, row in self.leases.items() if row.token == token), 0)

    def leases_renewed(self, event: Json, given: Json) -> None:
        """Many live on."""
        tokens = dict(given["request"]["leases"])
        for lease in event["leases"]:
            row = self.leases[lease]
            _must(not row.ended, "token", f"lease {lease} is over, yet was renewed")
            _must(tokens.get(lease) == self.era << 47 | row.token, "token", f"{lease} was renewed with another token")
            _must(given["principal"] == row.principal, "principal", "another's lease was renewed")
            row.expires_at_ns = max(row.expires_at_ns, self.now_ns + row.ttl_ms * 10**6)

    def lease_transferred(self, position: int, event: Json, given: Json) -> None:
        """It has another holder."""
        row, asked = self.leases[event["lease"]], given["request"]
        _must(not row.ended, "token", f"lease {event['lease']} is over, yet was handed on")
        _must(asked["token"] == self.era << 47 | row.token, "token", "handed on with another token")
        _must(given["principal"] == row.principal, "principal", "another's lease was handed on")
        to = (asked.get("principal") or given["principal"], asked["holder"])
        _must((event["principal"], event["holder"]) == to, "transfer", "to another than was said")
        _must(not row.mode and not row.reserved_for, "transfer", "it is shared, looked at, or reserved")
        if event["tenant"] != row.tenant:
            dirty = [device for device in row.devices if self.policies.get(device, (1, False))[1]]
            _must(not dirty, "clean", f"{dirty} goes to another tenant, and was not cleaned")
        row.principal, row.holder = to
        if event["tenant"] != row.tenant:
            row.tenant = event["tenant"]
            self._charge(row, {**event, "devices": row.devices})
        row.token = position

    def lease_switched(self, position: int, event: Json, given: Json) -> None:
        """What was reserved counts."""
        row, asked = self.leases[event["lease"]], given["request"]
        _must(not row.ended and row.reserved_for == event["source"], "switch", "it was not reserved for that")
        _must(asked["token"] == self.era << 47 | row.token, "token", "switched with another token")
        _must(given["principal"] == row.principal, "principal", "another's lease was switched")
        _must(bool(self.leases[event["source"]].ended), "switch", "what it stands in for has not ended")
        row.reserved_for, row.token = 0, position

    def let_go_by_switch(self, lease: int, given: Json) -> None:
        """A lease ends because another stands in for it: nothing may use its devices any more."""
        row = self.leases[given["request"]["lease"]]
        _must(row.reserved_for == lease, "switch", f"{lease} ends, but another is to be switched")
        _must(not self.leases[lease].ended, "token", f"lease {lease} is over, yet was released")
        for device in self.leases[lease].devices:
            _must(self.has_let_go(device), "switch", f"{device} is still had by a domain, or nobody can tell")


def tolerated(tolerates: tuple[str, ...], name: str, value: str) -> bool:
    """Whether a taint is among what somebody tolerates."""
    return any(each in ("*", name, f"{name}={value}") for each in tolerates)


def _names(wish: Wish, device_class: str) -> bool:
    options = [option for need in wish.get("needs", ()) for option in (need, *need.get("first_of", ()))]
    return any(option.get("device_class") == device_class for option in options)


def _target(event: Json) -> str:
    return f"{event['host']}/{event['key']}" if event["key"] else event["host"]


def _must(holds: bool, promise: str, text: str) -> None:
    if not holds:
        raise ViolationError(f"{promise}: {text}")
