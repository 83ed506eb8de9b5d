"""The guest's binder: started, killed, and what it does to devices, as the kernel says and as the ledger is told."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from leasehold.events.event_types import DeviceFreed, Event, SourceStarted
from leasehold.events.hostdev_events import DeviceGivenBack, DevicePrepared
from leasehold.services.cli.common import EXIT_REFUSED
from tests.vm.stage import Stage
from tests.vm.watched import HOST, Heard

BINDER: Final = "binder"
CREATOR: Final = "creator"
PCI: Final = "/sys/bus/pci/devices"
TRACING: Final = "/sys/kernel/tracing"
_DYING: Final = "/mnt/repo/tests/vm/dying.py"
_DIES: Final = "/run/leasehold/dies"
_WAIT_S: Final = 120.0
_PROBES: Final = {"reset": "__pci_reset_function_locked", "flr": "pcie_flr"}
"""By the name that it has in the trace: functions through which the kernel goes when it resets a PCI function."""


class Held:
    """A lease as its holder has it."""

    def __init__(self, granted: dict[str, Any]) -> None:
        self.number: str = str(granted["lease"])
        self.token: int = granted["token"]


class Binding:
    """What scenarios do with the binder."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.watched = stage.watched
        self.guest = stage.guest

    # --- the binder ---------------------------------------------------------------------------------------------------

    async def start(self, *words: str) -> None:
        """Start it, and wait until the log hears it."""
        await self.dies_before("")
        since = len(self.watched.heard)
        await self.watched.start_agent(BINDER, *words, program=(_DYING, _DIES))
        await self._heard(BINDER, since)

    async def dies_before(self, name: str) -> None:
        """Have it kill itself before it writes to a file of sysfs whose path ends so; empty: not."""
        await self.guest.ask("write", path=_DIES, text=name)

    async def runs(self) -> bool:
        """Whether it was started, and not ended."""
        return BINDER in (await self.guest.ask("running"))["names"]

    async def start_creator(self) -> None:
        """Start the creator, and wait until the log hears it."""
        since = len(self.watched.heard)
        await self.watched.start_agent(CREATOR)
        await self._heard(CREATOR, since)

    async def _heard(self, agent: str, since: int) -> None:
        try:
            await self.watched.event(
                lambda each: isinstance(each.event, SourceStarted) and each.event.agent == agent,
                f"the {agent}'s start",
                since=since,
                timeout_s=_WAIT_S,
            )
        except AssertionError as error:
            raise AssertionError(f"{error}\n{await self.watched.log(agent)}") from None

    async def until_killed(self) -> None:
        """Until the binder has killed itself."""
        code = (await self.guest.ask("wait", name=BINDER, timeout_s=100))["code"]
        assert code == -9, f"the binder ended with code {code}:\n{await self.watched.log(BINDER)}"

    async def retire(self) -> None:
        """End it for good: nobody binds anything on this host any more."""
        await self.watched.end_agent(BINDER)
        done = await self.watched.cli("retire", HOST, BINDER, "--reason", "the scenarios are over")
        assert done.code == 0, done.out + done.err

    # --- who has what -------------------------------------------------------------------------------------------------

    async def lease(self, device: str, *words: str) -> Held:
        """Lease a device; returns when it is handed over."""
        command = ("lease", device, "--host", HOST, "--for", "tester", "--ttl", "10m", "--wait-prepared", "--json")
        done = await self.watched.cli(*command, *words, timeout_s=_WAIT_S)
        assert done.code == 0, f"{done.out}{done.err}\n{await self.watched.log(BINDER)}"
        return Held(done.object)

    async def grant(self, device: str) -> Held:
        """Lease a device, and do not wait until it is handed over."""
        done = await self.watched.cli("lease", device, "--host", HOST, "--for", "tester", "--ttl", "10m", "--json")
        assert done.code == 0, done.out + done.err
        return Held(done.object)

    async def release(self, held: Held) -> None:
        """Give a lease back; what it held is the host's again later."""
        done = await self.watched.cli("release", held.number, "--token", str(held.token))
        assert done.code == 0, done.out + done.err

    async def refused(self, *words: str) -> str:
        """Have a command refused; what it said."""
        done = await self.watched.cli(*words)
        assert done.code == EXIT_REFUSED, f"{words}: {done.code} {done.out}{done.err}"
        return " ".join((done.out + done.err).split())[:200]

    async def refused_lease(self, device: str) -> str:
        """Have a lease for somebody else refused; what was said."""
        return await self.refused("lease", device, "--host", HOST, "--for", "another", "--ttl", "10m")

    # --- what is told -------------------------------------------------------------------------------------------------

    async def told(self, kind: type[Event], key: str, *, since: int, timeout_s: float = _WAIT_S) -> Heard:
        """The first event of this type about this device behind the `since`-th."""
        try:
            return await self.watched.event(
                lambda each: isinstance(each.event, kind) and each.key == key,
                f"{kind.__name__} {key}",
                since=since,
                timeout_s=timeout_s,
            )
        except AssertionError as error:
            raise AssertionError(f"{error}\nthe binder:\n{await self.watched.log(BINDER)}") from None

    def of(self, key: str, *kinds: type[Event], since: int) -> list[Event]:
        """The events of these types about this device behind the `since`-th."""
        return [each.event for each in self.watched.heard[since:] if each.key == key and isinstance(each.event, kinds)]

    async def given_back(self, key: str, *, since: int) -> DeviceGivenBack:
        """Until it is the host's, and free; there is evidence before it is free."""
        await self.told(DeviceFreed, key, since=since)
        events = self.of(key, DeviceGivenBack, DeviceFreed, since=since)
        assert [type(event) for event in events] == [DeviceGivenBack, DeviceFreed], events
        assert isinstance(events[0], DeviceGivenBack)
        return events[0]

    async def prepared(self, key: str, *, since: int) -> DevicePrepared:
        """What is said of it when it is handed over: once. It may be told later than who leased it has his answer."""
        await self.told(DevicePrepared, key, since=since)
        (event,) = self.of(key, DevicePrepared, since=since)
        assert isinstance(event, DevicePrepared)
        return event

    # --- what the kernel says -----------------------------------------------------------------------------------------

    async def driver(self, address: str) -> str:
        """What a PCI function is bound to, as the kernel says."""
        return await self.guest.link(f"{PCI}/{address}/driver")

    async def is_as_before(self, address: str, driver: str) -> None:
        """It is bound to what it was bound to, and no word is left that would bind it to another."""
        assert await self.driver(address) == driver
        override = str(await self.guest.read(f"{PCI}/{address}/driver_override")).strip()
        assert override in ("(null)", ""), override

    async def count_resets(self) -> None:
        """Have the kernel count its resets."""
        await self.guest.run("sh", "-c", f"[ -e {TRACING}/trace ] || mount -t tracefs trace {TRACING}")
        probes = "\n".join(f"p:{name} {function}" for name, function in _PROBES.items())
        await self.guest.run("sh", "-c", f"echo '{probes}' > {TRACING}/kprobe_events")
        await self.guest.write(f"{TRACING}/events/kprobes/enable", "1")

    async def resets(self) -> dict[str, int]:
        """How often the kernel has gone through each of these functions."""
        trace = str(await self.guest.read(f"{TRACING}/trace"))
        return {name: trace.count(f" {name}: (") for name in _PROBES}

    async def stop_counting(self) -> None:
        """Take the probes away."""
        await self.guest.write(f"{TRACING}/events/kprobes/enable", "0")
        await self.guest.run("sh", "-c", f"echo > {TRACING}/kprobe_events; echo > {TRACING}/trace")


@asynccontextmanager
async def managed(stage: Stage, *words: str, creator: bool = False) -> AsyncIterator[Binding]:
    """The guest as a managed host. Its binder goes on running behind this, see `unmanaged`.

    Args:
        stage: with the guest.
        words: what its binder is told.
        creator: whether one of these runs meanwhile, too.
    """
    binding = Binding(stage)
    if not await binding.runs():
        await binding.start(*words)
    if creator:
        await binding.start_creator()
    yield binding
    if creator:
        await stage.watched.end_agent(CREATOR)


async def unmanaged(stage: Stage) -> None:
    """Let the guest be a host that is only watched, as it was before any scenario with a binder."""
    binding = Binding(stage)
    if await binding.runs():
        await binding.retire()
