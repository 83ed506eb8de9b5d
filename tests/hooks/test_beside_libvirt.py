"""The hook as a real libvirtd calls it, with real guests."""

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.hooks.doors import REFUSED, Door, a_door
from tests.libvirt.hypervisor import Hypervisor, running_hypervisor
from tests.poller.libvirtstage import QemuStage, libvirt
from tests.support.tree import ROOT

STICK: Final = "usb-address/1.4"
CARD: Final = "pci/0000:03:00.0"


def install(hypervisor: Hypervisor) -> Path:
    """Put the hook where libvirtd looks at its start; the folder of it and its settings.

    libvirtd gives its hooks next to nothing of its environment, so that a shell says where the settings are.
    """
    folder = hypervisor.folder / "leasehold"
    shutil.copytree(ROOT / "deploy/hooks", folder)
    (folder / "qemu").symlink_to("libvirt_hook.py")
    hooks = hypervisor.folder / "etc/hooks"
    hooks.mkdir()
    (hooks / "qemu").write_text(f'#!/bin/sh\nLEASEHOLD_HOOKS="{folder}/hooks.conf" exec "{folder}/qemu" "$@"\n')
    (hooks / "qemu").chmod(0o755)
    return folder


def set_to(hypervisor: Hypervisor, **said: object) -> None:
    values = {"door": hypervisor.folder / "door", "state": hypervisor.folder / "state", **said}
    lines = "".join(f"{name} = {value}\n" for name, value in values.items())
    (hypervisor.folder / "leasehold/hooks.conf").write_text(f"[hooks]\n{lines}")


@pytest.fixture(scope="module")
def hypervisor() -> Iterator[Hypervisor]:
    """A libvirtd that has the hook."""
    with running_hypervisor() as hypervisor:
        install(hypervisor)
        hypervisor.signal("KILL")
        hypervisor.start()
        yield hypervisor


@pytest.fixture
async def stage(hypervisor: Hypervisor) -> AsyncIterator[QemuStage]:
    """It, without domains."""
    set_to(hypervisor)
    stage = QemuStage(hypervisor)
    yield stage
    await stage.close()


@pytest.fixture
def door(hypervisor: Hypervisor) -> Iterator[Door]:
    """It lets everything through unless told otherwise."""
    with a_door(hypervisor.folder / "door") as door:
        yield door


def ops(door: Door) -> list[str]:
    return [each["op"] for each in door.asked]


@pytest.mark.parametrize("device", [STICK, CARD])
async def test_a_start_without_a_lease_is_refused(stage: QemuStage, door: Door, device: str) -> None:
    """libvirt's own error names who has the device. Nothing runs, and nobody hears that it has ended."""
    door.answer = dict(REFUSED)
    uuid = await stage.define("web", devices=[device])
    with pytest.raises(
        libvirt.libvirtError, match=r"is leased to mary \(lease 773\).*wait for it, or ask mary"
    ) as refused:
        stage.domain(uuid).create()
    print(refused.value)
    assert not stage.domain(uuid).isActive()
    assert door.asked == [{"op": "start", "hypervisor": "qemu", "uuid": uuid, "name": "web", "devices": [device]}]


async def test_a_start_with_a_lease_goes(stage: QemuStage, door: Door) -> None:
    """The guest has its stick; libvirtd may die and come back meanwhile, which is nobody's start; its end is told."""
    uuid = await stage.start("web", devices=[STICK], managed=True)
    assert ops(door) == ["start"]
    await stage.lose()
    await stage.find()
    stage.domain(uuid).reset()  # waits until libvirtd is through with finding its guests again
    assert stage.domain(uuid).isActive()
    assert ops(door) == ["start"]
    stage.domain(uuid).destroy()
    assert ops(door) == ["start", "stop"]
    assert door.asked[1]["uuid"] == uuid


async def test_a_guest_that_ends_by_itself(stage: QemuStage, door: Door) -> None:
    """It is told as well: libvirt sees its process end."""
    uuid = await stage.start("web", devices=[STICK], managed=True)
    ends = door.next()
    stage.hypervisor.end_guest("web")
    assert ends.wait(20)
    assert ops(door) == ["start", "stop"]
    assert door.asked[1]["uuid"] == uuid


async def test_where_libvirt_itself_says_no(stage: QemuStage, door: Door) -> None:
    """With a lease, libvirt goes on to its own checks: without an IOMMU it refuses the card. Then the domain has ended,
    which is told.
    """
    uuid = await stage.define("web", devices=[CARD])
    with pytest.raises(libvirt.libvirtError) as refused:
        stage.domain(uuid).create()
    print(refused.value)
    assert "leasehold" not in str(refused.value)
    assert ops(door)[:1] == ["start"]


async def test_a_domain_without_host_devices(stage: QemuStage) -> None:
    """It starts where there is no binder at all."""
    uuid = await stage.start("web", managed=True)
    assert stage.domain(uuid).isActive()


async def test_no_binder(stage: QemuStage) -> None:
    """Refused, or let through, as it is set."""
    uuid = await stage.define("web", devices=[STICK])
    with pytest.raises(libvirt.libvirtError, match=r"there is no binder at .*refused, as on_failure is closed"):
        stage.domain(uuid).create()
    set_to(stage.hypervisor, on_failure="open")
    stage.domain(uuid).create()
    assert stage.domain(uuid).isActive()
