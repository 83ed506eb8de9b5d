"""The judge's book of domains: what the records say of them, of what they use, and of the leases that are for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from leasehold.events.domains import DomainDescription, Use
from leasehold.events.identities import domain_key
from tests.sim.world import ViolationError, words_of

if TYPE_CHECKING:
    from tests.sim.hypervisors import SimHypervisor
    from tests.sim.pollers import SimPoller

Where = tuple[str, str]
"""Host and uuid."""


@dataclass
class _Domain:
    agent: str
    described: dict[str, Any]
    uses: set[tuple[str, str]] = field(default_factory=set)
    """Word and use."""

    @property
    def is_there(self) -> bool:
        return self.described.get("domid", -1) >= 0 or self.described.get("state", "unknown") in ("dying", "unknown")


@dataclass
class Bond:
    """A lease for a domain."""

    uuid: str
    gone_ms: int
    hosts: frozenset[str]
    is_seen: bool = False
    gone_ns: int = 0
    """Since when the domain has been gone while all of that was shown; 0: it does not count."""


@dataclass
class DomainBook:
    """All domains that are in the log, held against the truth where it is known."""

    rows: dict[Where, _Domain] = field(default_factory=dict)
    bonds: dict[int, Bond] = field(default_factory=dict)
    """Of living leases."""
    pollers: dict[str, SimPoller] = field(default_factory=dict)
    """By host: the truth; empty where only a log is judged."""

    # --- what the log says ------------------------------------------------------------------------------------------

    def domain_appeared(self, event: dict[str, Any], given: dict[str, Any]) -> None:
        """Nobody knew it."""
        where = _where(event["host"], event["domain"]["key"])
        _must(where not in self.rows, f"{where} appeared, but was there")
        _must(given["agent"] == event["agent"], "another agent told")
        self.rows[where] = _Domain(event["agent"], event["domain"])

    def domain_changed(self, event: dict[str, Any], given: dict[str, Any]) -> None:
        """The same incarnation, or the end of one."""
        row, before = self._told(event["host"], event["domain"]["key"], given)
        domid = event["domain"].get("domid", -1)
        if domid != before:
            _must(domid == -1, f"incarnation {before} changed into {domid}")
            self._must_be_over(event["host"], before)
        row.described = event["domain"]

    def domain_started(self, event: dict[str, Any], given: dict[str, Any]) -> None:
        """Another incarnation; the one before has ended."""
        row, before = self._told(event["host"], event["domain"]["key"], given)
        domid = event["domain"].get("domid", -1)
        _must(event["was_domid"] == before and domid not in (-1, before), f"{before} started as {domid}")
        self._must_be_over(event["host"], before)
        row.described = event["domain"]

    def domain_vanished(self, event: dict[str, Any], given: dict[str, Any]) -> None:
        """It uses nothing, and its incarnation has ended."""
        row, before = self._told(event["host"], event["key"], given)
        _must(not row.uses, f"{event['key']} vanished, but uses {row.uses}")
        self._must_be_over(event["host"], before)
        del self.rows[_where(event["host"], event["key"])]

    def attachment_seen(self, event: dict[str, Any], given: dict[str, Any]) -> None:
        """A use that was not known."""
        row, _ = self._told(event["host"], event["domain"], given)
        use = event["device"], event["use"]
        _must(use not in row.uses, f"{use} was seen twice")
        row.uses.add(use)

    def attachment_gone(self, event: dict[str, Any], given: dict[str, Any]) -> None:
        """A use that was known."""
        row, _ = self._told(event["host"], event["domain"], given)
        use = event["device"], event["use"]
        _must(use in row.uses, f"{use} ended, but was not known")
        row.uses.remove(use)

    def forget(self, host: str, agent: str) -> None:
        """An agent was retired: nothing is known of what it told."""
        for where in [where for where, row in self.rows.items() if (where[0], row.agent) == (host, agent)]:
            del self.rows[where]

    def _told(self, host: str, key: str, given: dict[str, Any]) -> tuple[_Domain, int]:
        row = self.rows.get(_where(host, key))
        if row is None:
            raise ViolationError(f"domains: {key} on {host} is not known")
        _must((given["host"], given["agent"]) == (host, row.agent), f"another told of {key} on {host}")
        return row, row.described.get("domid", -1)

    def _must_be_over(self, host: str, domid: int) -> None:
        poller = self.pollers.get(host)
        over = domid < 0 or poller is None or domid in poller.hypervisor.over
        _must(over, f"incarnation {domid} on {host} is said to be over, but is not")

    # --- devices ----------------------------------------------------------------------------------------------------

    def users(self, device: str, usb_id: tuple[str, str]) -> list[str]:
        """The domains that have a device, by the log."""
        host, _, key = device.partition("/")
        words = {(word, "attached") for word in words_of(key, *usb_id)}
        return [uuid for (there, uuid), row in self.rows.items() if there == host and row.uses & words]

    def really_used(self, device: str, run: int, counter: int) -> str:
        """Which domain has a device in truth, if the poller's words up to this counter of this run have told so."""
        host, _, key = device.partition("/")
        poller = self.pollers.get(host)
        if poller is None:
            return ""
        for uuid, word in _given(poller.hypervisor, key):
            told = poller.covered.get(poller.hypervisor.given[uuid, word])
            if told is not None and told[0] == run and told[1] <= counter:
                return uuid
        return ""

    # --- leases for domains -----------------------------------------------------------------------------------------

    def follow_bonds(self, shown: frozenset[str], decided_at_ns: int) -> None:
        """Behind each event: which domains of leases are there. `shown`: the hosts that show theirs."""
        for bond in self.bonds.values():
            if any((host, bond.uuid) in self.rows and self.rows[host, bond.uuid].is_there for host in bond.hosts):
                bond.is_seen, bond.gone_ns = True, 0
            elif not bond.is_seen or not bond.hosts <= shown:
                bond.gone_ns = 0
            else:
                bond.gone_ns = bond.gone_ns or decided_at_ns

    def picture(self, host: str) -> dict[str, tuple[DomainDescription, tuple[Use, ...]]]:
        """The domains of a host by uuid, as the log knows them."""
        return {
            uuid: (
                DomainDescription(**{**row.described, "key": domain_key("xen", uuid)}),
                tuple(sorted(Use(*use) for use in row.uses)),
            )
            for (there, uuid), row in self.rows.items()
            if there == host
        }


def _given(hypervisor: SimHypervisor, key: str) -> Iterator[tuple[str, str]]:
    for each in hypervisor.all():
        for word, attached in each.attached.items():
            if attached == key:
                yield each.uuid, word


def _where(host: str, key: str) -> Where:
    return host, key.partition("/")[2]


def _must(holds: bool, text: str) -> None:
    if not holds:
        raise ViolationError(f"domains: {text}")
