"""Hypervisors in the simulator: domains as they really are, and what a source makes of them when it is asked."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Final

from leasehold.events.domains import DomainDescription, SeenDomain, Use
from leasehold.events.identities import DeviceKey, DomainKey, domain_key
from leasehold.projections.polling import Look
from tests.sim.world import SECOND, SimHost, words_of

UUIDS: Final = tuple(f"d0d0d0d0-0000-4000-8000-00000000000{number}" for number in range(4))
"""Of all domains; one may be on both hosts."""
SOURCES: Final = ("xend", "libxl", "libvirt")
"""What is asked. xend drops a dying domain from its list at once and says which devices are held; libxl shows a dying
one by its number; libvirt says nothing of either."""
MIB: Final = 2**20


@dataclass
class SimDomain:
    """A domain that exists."""

    uuid: str
    is_managed: bool
    """It is known while it is halted, too."""
    name: str
    domid: int = -1
    state: str = "halted"
    memory_bytes: int = 512 * MIB
    config: set[str] = field(default_factory=set)
    """Words for what its configuration claims."""
    attached: dict[str, DeviceKey] = field(default_factory=dict)
    """What it has been given, by word."""

    @property
    def runs(self) -> bool:
        """Whether it has an incarnation."""
        return self.domid >= 0


@dataclass
class _Dying:
    """An incarnation that is over, and whose devices are not free yet."""

    uuid: str
    domid: int
    attached: dict[str, DeviceKey]
    until_ns: int


@dataclass
class SimHypervisor:
    """A host's hypervisor, and the daemon that is asked for its domains."""

    host: SimHost
    rng: random.Random
    source: str
    tells_generation: bool
    domains: dict[str, SimDomain] = field(default_factory=dict)
    dying: list[_Dying] = field(default_factory=list)
    planned: list[tuple[int, str]] = field(default_factory=list)
    """When which domain starts again: reboots have a gap."""
    over: set[int] = field(default_factory=set)
    """Incarnations that have ended."""
    ended_ns: dict[str, int] = field(default_factory=dict)
    """When a domain last ceased to exist."""
    let_go_ns: dict[tuple[str, str], int] = field(default_factory=dict)
    """When a domain, by uuid, last ceased to have a device, by word."""
    given: dict[tuple[str, str], int] = field(default_factory=dict)
    """What is attached, and which attaching it was."""
    down_until_ns: int = 0
    empty_until_ns: int = 0
    empty_looks: int = 0
    """The daemon has just begun and lists nothing yet, as long as both say so."""
    generation: int = 0
    is_quiet: bool = False
    """Nothing happens any more but what is told."""
    _fails_once: bool = False
    _was_wrong: bool = False
    """The last look did not show all that is listed."""
    _domids: int = 0
    _attachings: int = 0

    # --- what happens -----------------------------------------------------------------------------------------------

    def act(self, now_ns: int) -> None:
        """Time goes on, and something may happen to a domain, or to the daemon."""
        for domain in self.all():
            for word, key in list(domain.attached.items()):
                if key not in self.host.devices:
                    self._let_go(domain, word, now_ns)
        for dying in [each for each in self.dying if each.until_ns <= now_ns]:
            self.dying.remove(dying)
            for word in list(dying.attached):
                self._let_go(dying, word, now_ns)
        for planned in [each for each in self.planned if each[0] <= now_ns]:
            self.planned.remove(planned)
            self.start(planned[1])
        if self.is_quiet:
            return
        if self.rng.random() < 0.12:
            self._do_something(now_ns)
        if self.rng.random() < 0.012:
            self._disturb_daemon(now_ns)

    def _do_something(self, now_ns: int) -> None:
        uuid = self.rng.choice(UUIDS)
        domain = self.domains.get(uuid)
        if domain is None or not domain.runs:
            what = self.rng.choice(("start", "start", "start", "define", "claim", "delete"))
            if what == "start":
                self.start(uuid)
            elif what == "define":
                self._define(uuid, is_managed=True)
            elif domain is not None and what == "claim":
                # Whoever has it.
                domain.config.add(self._some_word())
            elif domain is not None:
                self._remove(domain, now_ns)
            return
        match self.rng.choice(("stop", "reboot", "crash", "pause", "rename", "balloon", "plug", "plug", "unplug")):
            case "stop":
                self.stop(uuid, now_ns)
            case "reboot":
                self.stop(uuid, now_ns)
                gap_ns = self.rng.choice((0, 1, 1, 3, 8, 40)) * SECOND
                self.planned.append((now_ns + gap_ns, uuid))
            case "crash":
                domain.state = "crashed"
            case "pause":
                domain.state = "running" if domain.state == "paused" else "paused"
            case "rename":
                domain.name = f"vm-{self.rng.randrange(100)}-{uuid[-1]}"
            case "balloon":
                domain.memory_bytes = self.rng.randrange(1, 8) * 256 * MIB
            case "plug":
                self.attach(uuid, self.rng.choice(sorted(self.host.devices)))
            case "unplug":
                self.detach_some(uuid, now_ns)

    def _some_word(self) -> str:
        words = [word for key in sorted(self.host.devices) for word in self._words(key)]
        return self.rng.choice(words)

    def _words(self, key: DeviceKey) -> tuple[str, ...]:
        device = self.host.devices.get(key)
        return words_of(key, device.vendor_id, device.product_id) if device else ()

    def _define(self, uuid: str, *, is_managed: bool) -> SimDomain:
        domain = self.domains.setdefault(uuid, SimDomain(uuid, is_managed, f"vm{uuid[-1]}"))
        domain.is_managed = domain.is_managed or is_managed
        return domain

    def start(self, uuid: str) -> None:
        """It runs from now on, in a new incarnation, with what it claims and can have."""
        domain = self._define(uuid, is_managed=self.rng.random() < 0.4)
        if domain.runs:
            return
        self._domids += 1
        domain.domid, domain.state = self._domids, self.rng.choice(("running", "running", "paused"))
        for word in sorted(domain.config):
            self._give(domain, word, next((key for key in self.host.devices if word in self._words(key)), None))

    def stop(self, uuid: str, now_ns: int, *, slowly: bool = True) -> None:
        """Its incarnation ends; what it had is free at once, or after a while."""
        domain = self.domains.get(uuid)
        if domain is None or not domain.runs:
            return
        takes_ns = self.rng.choice((0, 0, 2, 10, 20)) * SECOND if slowly else 0
        over = _Dying(uuid, domain.domid, dict(domain.attached), now_ns + takes_ns)
        self.over.add(domain.domid)
        domain.domid, domain.state = -1, "halted"
        domain.attached.clear()
        if takes_ns:
            self.dying.append(over)
        else:
            for word in list(over.attached):
                self._let_go(over, word, now_ns)
        if not domain.is_managed:
            self._remove(domain, now_ns)

    def lose_power(self, now_ns: int) -> None:
        """All domains are gone at once, with whatever they had."""
        for dying in list(self.dying):
            self.dying.remove(dying)
            for word in list(dying.attached):
                self._let_go(dying, word, now_ns)
        for uuid in sorted(self.domains):
            self.stop(uuid, now_ns, slowly=False)

    def _remove(self, domain: SimDomain, now_ns: int) -> None:
        del self.domains[domain.uuid]
        self.ended_ns[domain.uuid] = now_ns

    def attach(self, uuid: str, key: DeviceKey) -> bool:
        """Give a domain a device; whether it has it now."""
        domain = self.domains.get(uuid)
        words = self._words(key)
        if domain is None or not domain.runs or not words or domain.state == "crashed":
            return False
        return self._give(domain, self.rng.choice(words), key)

    def _give(self, domain: SimDomain, word: str, key: DeviceKey | None) -> bool:
        taken = {each for other in self.all() for each in other.attached.values()}
        if key is None or key not in self.host.devices or key in taken:
            return False
        self._attachings += 1
        domain.config.add(word)
        domain.attached[word] = key
        self.given[domain.uuid, word] = self._attachings
        return True

    def detach_some(self, uuid: str, now_ns: int) -> None:
        """Take one of its devices from a domain."""
        domain = self.domains.get(uuid)
        if domain is not None and domain.attached:
            word = self.rng.choice(sorted(domain.attached))
            domain.config.discard(word)
            self._let_go(domain, word, now_ns)

    def lose(self, key: DeviceKey, now_ns: int) -> None:
        """A device is taken away, whoever has it."""
        for domain in self.all():
            for word in [word for word, attached in domain.attached.items() if attached == key]:
                self._let_go(domain, word, now_ns)

    def _let_go(self, domain: SimDomain | _Dying, word: str, now_ns: int) -> None:
        del domain.attached[word]
        if not self.has(domain.uuid, word):
            self.let_go_ns[domain.uuid, word] = now_ns
            self.given.pop((domain.uuid, word), None)

    def has(self, uuid: str, word: str) -> bool:
        """Whether a domain, be it dying, has a device."""
        return any(each.uuid == uuid and word in each.attached for each in self.all())

    def settle(self, now_ns: int) -> None:
        """The daemon answers from now on, domains are left to themselves, and some of them end."""
        self.is_quiet, self._fails_once = True, False
        self.down_until_ns = self.empty_looks = 0
        self.planned.clear()
        for uuid in sorted(self.domains):
            if self.rng.random() < 0.6:
                self.stop(uuid, now_ns)

    # --- what is seen of it -----------------------------------------------------------------------------------------

    def _disturb_daemon(self, now_ns: int) -> None:
        self.down_until_ns = now_ns + self.rng.choice((1, 5, 12, 40, 60)) * SECOND
        if self.rng.random() < 0.5:
            self.generation += 1
            # Without a number of its own it is known to be another by having been away.
            self._fails_once = not self.tells_generation
            if self.tells_generation:
                self.down_until_ns = 0
            self.empty_until_ns, self.empty_looks = max(now_ns, self.down_until_ns) + 6 * SECOND, 3

    def look(self, now_ns: int, watched: frozenset[str]) -> Look | None:
        """What its source sees now; `None`: no answer."""
        if now_ns < self.down_until_ns or self._fails_once:
            self._fails_once = False
            return None
        generation = str(self.generation) if self.tells_generation else ""
        held = frozenset(word for word in watched if any(word in each.attached for each in self.all()))
        if self.empty_looks and now_ns < self.empty_until_ns:
            self.empty_looks -= 1
            return Look(domains={}, held=None if self.source == "libvirt" else held, generation=generation)
        domains, unclear_names, unclear_domids = {}, set[str](), dict[int, str]()
        lacks = self.rng.choice(UUIDS) if not self._was_wrong and self.rng.random() < 0.02 else ""
        self._was_wrong = bool(lacks)
        for uuid, domain in sorted(self.domains.items()):
            if uuid == lacks:
                continue
            if not self.is_quiet and self.rng.random() < 0.03:
                # It is listed, and when it is asked for, there is no answer.
                if self.source == "libxl" and domain.runs:
                    unclear_domids[domain.domid] = ""
                else:
                    unclear_names.add(domain.name)
            else:
                domains[key_of(uuid)] = seen(domain)
        if self.source == "libxl":
            unclear_domids.update({each.domid: "dying" for each in self.dying})
        return Look(
            domains=domains,
            held=None if self.source == "libvirt" else held,
            unclear_names=frozenset(unclear_names),
            unclear_domids=unclear_domids,
            generation=generation,
        )

    def all(self) -> list[SimDomain | _Dying]:
        """All that have devices: what exists, and what is not over yet."""
        return [*self.domains.values(), *self.dying]

    def picture(self) -> dict[DomainKey, SeenDomain]:
        """All domains as they are."""
        return {key_of(uuid): seen(domain) for uuid, domain in self.domains.items()}


def key_of(uuid: str) -> DomainKey:
    """The key of a domain here."""
    return domain_key("xen", uuid)


def seen(domain: SimDomain) -> SeenDomain:
    """A domain as a source describes it."""
    uses = [Use(word, "configured") for word in domain.config] + [Use(word, "attached") for word in domain.attached]
    described = DomainDescription(
        key=key_of(domain.uuid),
        name=domain.name,
        domid=domain.domid,
        state=domain.state,
        memory_bytes=domain.memory_bytes,
        max_memory_bytes=2048 * MIB,
        vcpus=2,
        kind="hvm",
    )
    return SeenDomain(described, tuple(sorted(uses)))
