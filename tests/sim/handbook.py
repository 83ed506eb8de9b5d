"""The judge's book of devices that are handed over: what binders and operators say, and the truth where it is known."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from leasehold.events.identities import DeviceKey
from tests.sim.world import ViolationError

if TYPE_CHECKING:
    from tests.sim.kernels import SimKernel

BINDER = "binder"


@dataclass
class _Device:
    given_back: int = 0
    """For which lease, while that holds it."""
    quarantine: str = ""
    drift: tuple[str, int] = ("", 0)
    """Kind and position of what is told, and not resolved."""
    by_word: set[int] = field(default_factory=set)
    """Of which leases an operator has said that it is free: then nobody else vouches for it."""
    by_death: set[int] = field(default_factory=set)
    """Of which leases it was freed because its host was declared dead."""


@dataclass
class HandBook:
    """All that is handed over, or was and is not free yet."""

    managed: set[str] = field(default_factory=set)
    dead: set[str] = field(default_factory=set)
    """Hosts declared dead, which have not reported anew."""
    devices: dict[str, _Device] = field(default_factory=dict)
    forced: set[int] = field(default_factory=set)
    """Leases that were revoked by force."""
    kernels: dict[str, SimKernel] = field(default_factory=dict)
    """By host: the truth; empty where only a log is judged."""

    def row(self, device: str) -> _Device:
        """What is known of a device."""
        return self.devices.setdefault(device, _Device())

    # --- hosts ------------------------------------------------------------------------------------------------------

    def host_registered(self, event: dict[str, Any]) -> None:
        """A binder acts there from now on, or nobody does."""
        (self.managed.add if event["mode"] == "managed" else self.managed.discard)(event["host"])

    def picture_completed(self, event: dict[str, Any]) -> None:
        """Who can say what is left on a host that was dead has said it."""
        if event["agent"] == (BINDER if event["host"] in self.managed else "watcher"):
            self.dead.discard(event["host"])

    def agent_retired(self, event: dict[str, Any], *, is_told: bool) -> None:
        """Without a binder nobody hands over there. `is_told`: who tells of its devices has done so."""
        if event["agent"] == BINDER:
            self.managed.discard(event["host"])
        if is_told and event["host"] not in self.managed:
            self.dead.discard(event["host"])

    def host_declared_dead(self, event: dict[str, Any], agents: dict[str, bool]) -> None:
        """An operator says so. `agents`: of each, whether it is out of touch."""
        _must(all(agents.values()), f"{event['host']} was declared dead, but of {agents} some are heard")
        self.dead.add(event["host"])

    # --- what binders say -------------------------------------------------------------------------------------------

    def device_prepared(self, event: dict[str, Any], given: dict[str, Any], *, is_its: bool) -> None:
        """It is ready. `is_its`: the lease lives and holds it."""
        device = _told(event, given, "prepared")
        _must(is_its, f"{device} was prepared for {event['lease']}, which does not live or hold it")
        _must(event["host"] in self.managed, f"{device} was prepared where nobody does so")

    def prepare_failed(self, event: dict[str, Any], given: dict[str, Any], *, is_its: bool) -> None:
        """It cannot be had. `is_its` as above."""
        device = _told(event, given, "not_prepared")
        _must(is_its, f"{device} failed for {event['lease']}, which does not live or hold it")

    def device_given_back(self, event: dict[str, Any], given: dict[str, Any], *, lease: int, lives: bool) -> None:
        """It is the host's again. `lease`: which holds it, by the log; `lives`: that lives."""
        device, row = _told(event, given, "given_back"), self.row(_device_of(event))
        _must(not (lives and lease == event["lease"]), f"{device} was given back, but {lease} lives")
        again = bool(lease) and row.given_back == lease == event["lease"] and not row.quarantine
        _must(not again, f"{device} was given back twice for {lease}")
        if lease == event["lease"]:
            row.given_back = lease
        row.quarantine = ""

    def device_quarantined(self, event: dict[str, Any], given: dict[str, Any]) -> None:
        """It cannot be brought back."""
        device, row = _told(event, given, "stuck"), self.row(_device_of(event))
        _must(bool(event["reason"]) and bool(event["help"]), f"{device} is in quarantine, and nobody says why")
        row.quarantine = event["reason"]

    # --- leases -----------------------------------------------------------------------------------------------------

    def granted(self, device: str) -> None:
        """Somebody gets it: nothing of whom had it before may be left."""
        host, _, key = device.partition("/")
        row = self.row(device)
        _must(not row.quarantine, f"{device} was granted in spite of its quarantine")
        _must(host not in self.dead, f"{device} was granted, but {host} is dead")
        row.given_back = 0
        kernel = self.kernels.get(host)
        left = kernel.handed.get(DeviceKey(key), 0) if kernel is not None and host in self.managed else 0
        _must(not left or left in row.by_word, f"{device} was granted while it is in {left}'s hands")

    def freed(self, device: str, lease: int, *, by_word: bool) -> bool:
        """Nobody has it any more. `by_word`: an operator says so. Whether it needs no other evidence."""
        host, row = device.partition("/")[0], self.row(device)
        is_back, row.given_back = row.given_back == lease, 0
        if by_word:
            row.quarantine = ""
            row.by_word.add(lease)
            return True
        if host in self.dead:
            row.by_death.add(lease)
            return True
        _must(host not in self.managed or is_back, f"{device} was freed, but nobody has given it back")
        return False

    def was_freed_by_word(self, device: str, lease: int) -> bool:
        """Whether an operator has said that it is free of this lease, or its host dead, so that it may be another's."""
        return lease in self.row(device).by_word | self.row(device).by_death

    # --- differences ------------------------------------------------------------------------------------------------

    def drift_detected(self, position: int, event: dict[str, Any]) -> None:
        """Witnesses differ."""
        row = self.row(event["device"])
        _must(not row.drift[0], f"{event['device']} is {event['kind']}, but was {row.drift[0]}, which is not resolved")
        told = [event[witness]["position"] for witness in ("leased", "attached", "bound")]
        _must(max(told) < position, f"{event['device']} is {event['kind']} by what is told later")
        row.drift = (event["kind"], position)

    def drift_resolved(self, event: dict[str, Any]) -> None:
        """They agree again."""
        row = self.row(event["device"])
        told = (event["kind"], event["since_position"])
        _must(row.drift == told, f"{event['device']}: {told} is resolved, but {row.drift} was told")
        row.drift = ("", 0)


def _device_of(event: dict[str, Any]) -> str:
    return f"{event['host']}/{event['key']}"


def _told(event: dict[str, Any], given: dict[str, Any], word: str) -> str:
    """The device, if it is the binder of its host who says just this."""
    device = _device_of(event)
    _must((given.get("host"), given.get("agent")) == (event["host"], BINDER), f"another tells that {device} is {word}")
    said = [each for each in given["observations"] if each["type"].partition(".")[0] == word]
    # A lease that the ledger does not have is none.
    same = [each for each in said if each["key"] == event["key"] and event["lease"] in (0, each["lease"])]
    _must(bool(same), f"{device} is {word}, but its binder says another thing")
    return device


def _must(holds: bool, text: str) -> None:
    if not holds:
        raise ViolationError(f"handing: {text}")
