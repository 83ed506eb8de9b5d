"""From a lease to a guest: a real libvirtd, its hook, the binder's real door and core, and a played kernel."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from leasehold.events.identities import DeviceKey
from leasehold.services.binder import door as door_module
from leasehold.services.binder.door import Door
from tests.binder.kernel import STICK, usb
from tests.hooks.test_beside_libvirt import install, set_to
from tests.hostdevs.cluster import Cluster
from tests.hostdevs.hosts import Host
from tests.libvirt.hypervisor import Hypervisor, running_hypervisor
from tests.poller.libvirtstage import QemuStage, libvirt
from tests.projections.ledger import B

KEY: DeviceKey = usb(STICK)
WORD = "usb-address/1.5"
"""What the stick is called on both machines: the one that libvirtd sees, and the one that the binder acts on."""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    monkeypatch.setattr(door_module, "_now_ms", cluster.door_ms)
    yield cluster
    cluster.close()


@pytest.fixture
def hypervisor() -> Iterator[Hypervisor]:
    with running_hypervisor() as hypervisor:
        install(hypervisor)
        set_to(hypervisor)
        hypervisor.signal("KILL")
        hypervisor.start()
        yield hypervisor


class OpenDoor:
    """A host's door, in a thread with a loop of its own, as libvirtd blocks ours."""

    def __init__(self, host: Host, path: Path) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._door = asyncio.run_coroutine_threadsafe(self._open(host, path), self._loop).result(10)

    @staticmethod
    async def _open(host: Host, path: Path) -> Door:
        assert host.handing is not None
        return await Door(path, host.name, host.handing, asyncio.Condition(), lambda: None).__aenter__()

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._door.__aexit__(None, None, None), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def test_a_lease_is_what_a_guest_starts_by(cluster: Cluster, hypervisor: Hypervisor) -> None:
    """Without a lease it is refused, with another's by that one's name; with its own it runs; behind its end the stick
    is the host's again.
    """
    host = cluster.add("h1")
    assert host.address(KEY) == WORD
    stage = QemuStage(hypervisor)
    door = OpenDoor(host, hypervisor.folder / "door")
    try:
        uuid = await stage.define("web", devices=[WORD])
        with pytest.raises(libvirt.libvirtError, match=r"domain web may not have .*no lease holds it"):
            stage.domain(uuid).create()
        other = cluster.take(host, KEY, principal=B, holder="mary")
        with pytest.raises(libvirt.libvirtError, match=r"domain web may not have .*mary holds it"):
            stage.domain(uuid).create()
        assert host.word(KEY) == "leased prepared"
        cluster.give(other, B)
        cluster.take(host, KEY, domain=uuid)
        stage.domain(uuid).create()
        assert stage.domain(uuid).isActive()
        assert host.word(KEY) == "leased prepared"
        stage.domain(uuid).destroy()
        cluster.settle()
        cluster.advance(1)
        assert (host.word(KEY), host.kernel.driver(f"{STICK}:1.0")) == ("free", "usb-storage")
    finally:
        door.close()
        await stage.close()
