"""What every source must do, whatever it asks. A source's tests subclass `SourceSuite` and give it a `Stage`.

What one look shows is judged directly; what is believed after several, by `Watch`: the source's looks taken in by the
real `projections.polling`, with a clock of our own that moves on between them.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final, Protocol

import pytest

from leasehold.events import limits
from leasehold.events.domains import DomainPicture, SeenDomain, Use, parse_device_word
from leasehold.events.errors import SourceUnavailableError
from leasehold.events.identities import DomainKey, uuid_of
from leasehold.events.inputs import DeviceUnused, DeviceUsed, DomainGone, DomainSeen, Observation
from leasehold.projections.polling import HELD_MS, MISSING_MS, WARY_LOOKS, WARY_MS, Look, Polling
from leasehold.services.poller.source import Source
from tests.support.not_run import not_run

MIB: Final = 1024 * 1024
WAIT_S: Final = 20.0
"""For what a hypervisor does by itself: that is seen by looking again and again."""


class Stage(Protocol):
    """A hypervisor with which things can be made to happen; at first it has no guests.

    Domains are named by uuid. Each method returns when it has been done, as far as the hypervisor's own tools say so;
    that a source shows it may take longer, so tests look until it does.
    """

    cannot: Mapping[str, str]
    """Names of those methods below that this hypervisor cannot do, or not here, each with the reason."""
    pci: Sequence[str]
    """Device words of PCI functions that may be given to guests here; none if that cannot be done."""
    usb: Sequence[str]
    """The same of USB devices, in the spelling in which this source tells them."""

    def source(self) -> Source:
        """A source that nobody has used, of this hypervisor."""
        ...

    async def start(self, name: str, *, devices: Sequence[str] = (), managed: bool = False) -> str:
        """Start a guest of 64 MiB with one CPU that has these devices (words of `pci` and `usb`); its uuid. `managed`:
        the hypervisor knows it when it is halted, too.
        """
        ...

    async def define(self, name: str, *, devices: Sequence[str] = ()) -> str:
        """Make one known that is halted, and whose configuration claims these devices; its uuid."""
        ...

    async def reboot(self, uuid: str) -> None:
        """Have it begin anew, as another incarnation."""
        ...

    async def halt(self, uuid: str) -> None:
        """End a managed one: it stays known."""
        ...

    async def destroy(self, uuid: str) -> None:
        """End one that is not managed: it is not known any more."""
        ...

    async def destroy_slowly(self, uuid: str) -> None:
        """The same, but what it has is held until `let_go`."""
        ...

    async def let_go(self, uuid: str) -> None:
        """End what `destroy_slowly` began."""
        ...

    async def rename(self, uuid: str, name: str) -> None:
        """Call it otherwise."""
        ...

    async def pause(self, uuid: str) -> None:
        """Let it not run for a while."""
        ...

    async def unpause(self, uuid: str) -> None:
        """Let it run on."""
        ...

    async def crash(self, uuid: str) -> None:
        """Have it crash, and stay so."""
        ...

    async def set_memory(self, uuid: str, memory_bytes: int) -> None:
        """Have it live with less memory."""
        ...

    async def attach(self, uuid: str, device: str) -> None:
        """Give a running one a device."""
        ...

    async def detach(self, uuid: str, device: str) -> None:
        """Take it away."""
        ...

    async def lose(self) -> None:
        """From now on nothing answers; guests run on."""
        ...

    async def find(self) -> None:
        """It answers again."""
        ...

    async def close(self) -> None:
        """End everything."""
        ...


class Watch:
    """A source's looks, taken in by the real `Polling`; the clock moves on by `step_ms` for each."""

    def __init__(self, source: Source, in_log: DomainPicture | None = None) -> None:
        self.source = source
        self.polling = Polling()
        self.now_ms = 1_000_000
        self.told: list[Observation] = []
        self._in_log = in_log or {}
        self._is_synced = False

    async def look(self, *, step_ms: int = MISSING_MS) -> Look | None:
        """One look, and what it has to tell; `None` if the source does not answer."""
        self.now_ms += step_ms
        self.polling.asks(self.now_ms)
        look = None
        try:
            async with asyncio.timeout(limits.POLL_TIMEOUT_MS / 1_000):
                look = await self.source.look(self.polling.watched)
            self.polling.saw(look, self.now_ms)
        except SourceUnavailableError as error:
            self.polling.failed(str(error), self.now_ms)
        if self._is_synced:
            self.told += self.polling.news(self.now_ms)
        else:
            self.told += self.polling.sync(self._in_log, self.now_ms)
            self._is_synced = True
        return look

    async def settle(self) -> None:
        """Look until the source is trusted; what was told up to then is forgotten."""
        for _ in range(max(WARY_LOOKS, WARY_MS // MISSING_MS) + 2):
            await self.look()
        self.told.clear()

    async def until(self, *wanted: Observation | type[Observation], also: Sequence[type[Observation]] = ()) -> None:
        """Look until just these have been told, in any order, beside ones of the types `also`; then forget them."""
        give_up_s = asyncio.get_running_loop().time() + WAIT_S
        while not self._has(wanted, also):
            left_s = give_up_s - asyncio.get_running_loop().time()
            assert left_s > 0, f"wanted {wanted}, told {self.told}"
            await self.look()
        self.told.clear()

    def _has(self, wanted: Sequence[Observation | type[Observation]], also: Sequence[type[Observation]]) -> bool:
        left = list(wanted)
        for told in self.told:
            found = [each for each in left if told == each or (isinstance(each, type) and isinstance(told, each))]
            if found:
                left.remove(found[0])
            else:
                assert isinstance(told, tuple(also)), f"{told} was told; wanted were {wanted}"
        return not left


class SourceSuite:
    """The tests. Subclasses, whose names begin with `Test`, have an async fixture `stage`, and may add their own."""

    @pytest.fixture
    async def source(self, stage: Stage) -> AsyncIterator[Source]:
        """A source of its own."""
        source = stage.source()
        yield source
        await source.close()

    @pytest.fixture
    async def watch(self, source: Source) -> Watch:
        """Its looks, from when it is trusted."""
        watch = Watch(source)
        await watch.settle()
        return watch

    async def test_a_guest_that_runs(self, stage: Stage, source: Source) -> None:
        """It is seen with its name, its number, its memory and its CPUs, as running."""
        uuid = await stage.start("web1")
        seen = await _shown(source, uuid, state="running")
        assert seen.domain.name == "web1"
        assert seen.domain.domid > 0
        assert seen.domain.vcpus == 1
        assert seen.domain.max_memory_bytes == seen.domain.memory_bytes == 64 * MIB
        assert uuid_of(seen.domain.key) == uuid
        assert seen.uses == ()

    async def test_nothing_happens(self, stage: Stage, watch: Watch) -> None:
        """Where nothing changes, nothing is told, whether guests happen to be on a CPU or not."""
        await stage.start("web1")
        await watch.until(DomainSeen, also=(DomainSeen,))
        await watch.settle()
        for _ in range(5):
            await watch.look()
        assert watch.told == []

    async def test_a_reboot(self, stage: Stage, watch: Watch) -> None:
        """It is the same domain in another incarnation; it has not gone meanwhile."""
        _needs(stage, "reboot")
        uuid = await stage.start("web1")
        before = await _shown(watch.source, uuid, state="running")
        await watch.until(DomainSeen)
        await stage.reboot(uuid)
        after = await _shown(watch.source, uuid, state="running", not_domid=before.domain.domid)
        assert after.domain.domid > before.domain.domid
        assert after.domain.key == before.domain.key
        await watch.until(DomainSeen(after.domain), also=(DomainSeen,))

    async def test_another_name(self, stage: Stage, watch: Watch) -> None:
        """It stays the same domain."""
        _needs(stage, "rename")
        uuid = await stage.start("web1")
        await _shown(watch.source, uuid, state="running")
        await watch.until(DomainSeen)
        await stage.rename(uuid, "web2")
        seen = await _shown(watch.source, uuid, name="web2")
        await watch.until(DomainSeen(seen.domain))

    async def test_paused_and_crashed(self, stage: Stage, source: Source) -> None:
        """States that people bring about are told."""
        uuid = await stage.start("web1")
        if "pause" not in stage.cannot:
            await stage.pause(uuid)
            await _shown(source, uuid, state="paused")
            await stage.unpause(uuid)
        await _shown(source, uuid, state="running")
        _needs(stage, "crash")
        await stage.crash(uuid)
        await _shown(source, uuid, state="crashed")

    async def test_halted(self, stage: Stage, source: Source) -> None:
        """One that is known and does not run has no incarnation; what it claims it only claims."""
        _needs(stage, "halt")
        devices = stage.pci[:1]
        uuid = await stage.start("db", devices=devices, managed=True)
        words = {parse_device_word(word) for word in devices}
        running = await _shown(source, uuid, state="running")
        assert {use.device for use in running.uses if use.use == "attached"} == words
        await stage.halt(uuid)
        halted = await _shown(source, uuid, state="halted")
        assert halted.domain.domid == -1
        assert halted.uses == tuple(Use(word, "configured") for word in sorted(words))

    async def test_a_claim_is_not_a_possession(self, stage: Stage, source: Source) -> None:
        """A halted domain may claim what a running one has: both are told, each as it is."""
        _needs(stage, "define", pci=1)
        word = parse_device_word(stage.pci[0])
        has = await stage.start("gpu", devices=(word,))
        claims = await stage.define("planner", devices=(word,))
        assert Use(word, "attached") in (await _shown(source, has, state="running")).uses
        assert (await _shown(source, claims, state="halted")).uses == (Use(word, "configured"),)

    @pytest.mark.parametrize("kind", ["pci", "usb"])
    async def test_hot_plugged(self, stage: Stage, watch: Watch, kind: str) -> None:
        """A device that comes to a running guest, and goes, is told as just that."""
        _needs(stage, "attach", **{kind: 1})
        word = parse_device_word((stage.pci if kind == "pci" else stage.usb)[0])
        uuid = await stage.start("web1")
        key = (await _shown(watch.source, uuid, state="running")).domain.key
        await watch.until(DomainSeen)
        await stage.attach(uuid, word)
        await watch.until(DeviceUsed(key, word, "attached"), also=(DeviceUsed,))
        await watch.look()
        watch.told.clear()
        _needs(stage, "detach")
        await stage.detach(uuid, word)
        await watch.until(DeviceUnused(key, word, "attached"), also=(DeviceUnused,))

    async def test_memory(self, stage: Stage, source: Source) -> None:
        """What it is to live with is told in bytes; what it may grow to stays."""
        _needs(stage, "set_memory")
        uuid = await stage.start("web1")
        await _shown(source, uuid, state="running")
        await stage.set_memory(uuid, 32 * MIB)
        seen = await _shown(source, uuid, memory_bytes=32 * MIB)
        assert seen.domain.max_memory_bytes == 64 * MIB

    async def test_gone(self, stage: Stage, watch: Watch) -> None:
        """A guest that is not listed is told as gone, once, and not after one look; what it had goes first."""
        devices = stage.pci[:1]
        uuid = await stage.start("web1", devices=devices)
        key = (await _shown(watch.source, uuid, state="running")).domain.key
        await watch.until(DomainSeen, also=(DeviceUsed,))
        await watch.look()
        watch.told.clear()
        await stage.destroy(uuid)
        await _not_shown(watch.source, key)
        await watch.look()
        assert DomainGone(key) not in watch.told
        unused = [DeviceUnused] if devices else []
        await watch.until(DomainGone(key), *unused, also=(DomainSeen, DeviceUnused))

    async def test_dying(self, stage: Stage, watch: Watch) -> None:
        """One that has gone and whose device is still held is dying, and has gone when that is free."""
        _needs(stage, "destroy_slowly", pci=1)
        uuid = await stage.start("gpu", devices=stage.pci[:1])
        key = (await _shown(watch.source, uuid, state="running")).domain.key
        await watch.until(DomainSeen, also=(DeviceUsed,))
        await watch.look()
        watch.told.clear()
        await stage.destroy_slowly(uuid)
        while not any(isinstance(told, DomainSeen) and told.domain.state == "dying" for told in watch.told):
            await watch.look()
        for _ in range(HELD_MS // MISSING_MS + 1):
            await watch.look()
        assert DeviceUnused(key, parse_device_word(stage.pci[0]), "attached") not in watch.told
        await stage.let_go(uuid)
        await watch.until(DomainGone(key), also=(DeviceUnused, DomainSeen))

    async def test_no_answer_is_not_nothing(self, stage: Stage, watch: Watch) -> None:
        """While nothing answers nothing goes; when it answers again, all is as before."""
        _needs(stage, "lose")
        uuid = await stage.start("web1", devices=stage.pci[:1])
        await _shown(watch.source, uuid, state="running")
        await watch.until(DomainSeen, also=(DeviceUsed,))
        await watch.settle()
        await stage.lose()
        for _ in range(3):
            assert await watch.look() is None
        await stage.find()
        give_up_s = asyncio.get_running_loop().time() + WAIT_S
        while await watch.look() is None:
            assert asyncio.get_running_loop().time() < give_up_s, "it does not answer again"
        for _ in range(WARY_LOOKS + 2):
            await watch.look()
        assert watch.told == []

    async def test_given_up_and_closed(self, stage: Stage) -> None:
        """A look may be given up, and the next one is whole; whoever closes twice does no harm."""
        uuid = await stage.start("web1")
        source = stage.source()
        first = asyncio.create_task(source.look(frozenset()))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await _shown(source, uuid, state="running")
        await source.close()
        await source.close()

    async def test_it_says_when_something_changes(self, stage: Stage, source: Source) -> None:
        """A source that tells of changes does so, also of one that came while nobody waited; another never does."""
        await source.look(frozenset())
        await stage.start("web1")
        if source.rest_ms > limits.POLL_MS_MAX:
            async with asyncio.timeout(WAIT_S):
                await source.changed()
            return
        told = asyncio.ensure_future(source.changed())
        await source.look(frozenset())
        if told.done():
            told.result()
        told.cancel()
        await asyncio.wait({told})


def _needs(stage: Stage, method: str, *, pci: int = 0, usb: int = 0) -> None:
    if method in stage.cannot:
        not_run(f"{method}: {stage.cannot[method]}")
    if len(stage.pci) < pci or len(stage.usb) < usb:
        not_run(f"{method}: no {'USB' if usb else 'PCI'} device can be given to guests here")


async def _shown(source: Source, uuid: str, *, not_domid: int = -2, **fields: str | int) -> SeenDomain:
    """Look until this domain is shown with these fields."""
    give_up_s = asyncio.get_running_loop().time() + WAIT_S
    while True:
        found = [seen for key, seen in (await source.look(frozenset())).domains.items() if uuid_of(key) == uuid]
        right = [
            seen
            for seen in found
            if seen.domain.domid != not_domid
            and all(getattr(seen.domain, name) == value for name, value in fields.items())
        ]
        if right:
            return right[0]
        assert asyncio.get_running_loop().time() < give_up_s, f"{fields} wanted, shown is {found}"


async def _not_shown(source: Source, key: DomainKey) -> None:
    """Look until this domain is not listed."""
    give_up_s = asyncio.get_running_loop().time() + WAIT_S
    while key in (await source.look(frozenset())).domains:
        assert asyncio.get_running_loop().time() < give_up_s, f"{key} stays"
