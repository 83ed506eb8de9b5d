"""The client and the stand-in together, on all three transports: what the one asks for, the other does."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from leasehold.events.errors import XendFailedError, XendNotFoundError
from leasehold.services.xend.client import XendClient
from leasehold.services.xend.devices import PciFunction, UsbController, Vbd, Vif
from leasehold.services.xend.model import DomainConfig, Image
from leasehold.services.xendsim.server import Options, Stand, give_order

MIB = 1 << 20


@pytest.fixture(params=["unix", "http", "xmlrpc"])
async def client(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[XendClient]:
    """A client of a stand-in; where keys stand in any order, as with the genuine one."""
    stand = Stand(Options(directory=tmp_path, http=("127.0.0.1", 0), seed=3))
    async with stand.listening():
        for name, ms in (("guest_ms", "0"), ("ended_ms", "0"), ("gap_ms", "0"), ("restart_after_ms", "0")):
            await give_order(tmp_path, ["timing", name, ms])
        address = next(each for each in stand.addresses if each.startswith(f"{request.param}:"))
        yield XendClient(address, timeout_s=10, long_timeout_s=10)


def web1() -> DomainConfig:
    return DomainConfig(
        name="web1",
        memory_bytes=512 * MIB,
        max_memory_bytes=1_024 * MIB,
        vcpus=2,
        image=Image(kernel="/boot/vmlinuz-pv"),
        vbds=(Vbd(uname="phy:/dev/vg0/web1", dev="xvda1"),),
        vifs=(Vif(mac="00:16:3e:11:22:33", bridge="xenbr0"),),
        pci=(PciFunction(address="0000:03:00.0"),),
        usb=(UsbController(ports={1: "1-1", 2: ""}),),
    )


async def test_life(client: XendClient) -> None:
    """A domain is made, goes on, is asked about, renamed, changed, rebooted and destroyed."""
    made = await client.create(web1())
    assert (made.name, made.state, made.memory_bytes) == ("web1", "paused", 512 * MIB)
    assert await client.get_domains() == ["Domain-0"]
    await client.wait_for_devices("web1")
    await client.unpause("web1")
    found = await client.get_domain("web1")
    assert (found.state, found.uuid, found.domid) == ("running", made.uuid, made.domid)
    assert [each.address for each in found.pci] == ["0000:03:00.0"]
    assert [each.ports.get(1) for each in found.usb] == ["1-1"]
    assert [each.mac for each in found.vifs] == ["00:16:3e:11:22:33"]
    await client.rename("web1", "web-one")
    with pytest.raises(XendNotFoundError):
        await client.get_domain("web1")
    await client.set_max_memory("web-one", 2_048 * MIB)
    await client.set_memory("web-one", 640 * MIB)
    await client.sysrq("web-one", "h")
    await client.set_vcpus("web-one", 1)
    assert len(await client.vcpus("web-one")) == 2
    changed = await client.get_domain(made.uuid)
    assert (changed.memory_bytes, changed.max_memory_bytes) == (640 * MIB, 2_048 * MIB)
    await client.reboot("web-one")
    async with asyncio.timeout(10):
        while not (again := [each for each in await client.domains("all") if each.domid > made.domid]):
            pass
    assert (again[0].name, again[0].uuid) == ("web-one", made.uuid)
    await client.destroy("web-one")
    assert await client.get_domains("all") == ["Domain-0"]


async def test_devices(client: XendClient) -> None:
    """Devices come and go; what another domain has is refused."""
    await client.create(web1())
    await client.unpause("web1")
    await client.create(DomainConfig(name="other", memory_bytes=64 * MIB, image=Image(kernel="/boot/vmlinuz-pv")))
    await client.vbd_create("web1", Vbd(uname="phy:/dev/vg0/data", dev="xvdb", mode="rw"))
    await client.vif_create("web1", Vif(bridge="xenbr0"))
    assert [each.ref for each in await client.virtual_devices("web1", "vbd")] == ["51713", "51728"]
    assert [each.attributes["bkdom-name"] for each in await client.virtual_devices("web1", "vif")] == ["Domain-0"] * 2
    await client.vbd_destroy("web1", "xvdb")
    await client.vif_destroy("web1", "1")
    with pytest.raises(XendFailedError, match="already been assigned to other domain"):
        await client.pci_attach("other", "0000:03:00.0")
    await client.pci_attach("other", "0000:03:00.1")
    await client.pci_detach("web1", "0000:03:00.0")
    await client.usb_attach("web1", "1-2", port=2)
    found = {each.name: each for each in await client.domains("all")}
    assert [each.address for each in found["other"].pci] == ["0000:03:00.1"]
    assert found["web1"].pci == ()
    assert [each.ports for each in found["web1"].usb] == [{1: "1-1", 2: "1-2"}]
    await client.usb_detach("web1", port=2)
    assert (await client.get_domain("web1")).usb[0].ports == {1: "1-1", 2: ""}


async def test_managed(client: XendClient) -> None:
    """A managed domain is defined, started, destroyed and forgotten; its claims are told while it rests."""
    await client.define(web1())
    halted = await client.get_domain("web1")
    assert (halted.state, halted.domid) == ("halted", -1)
    assert [each.address for each in halted.pci] == ["0000:03:00.0"]
    assert [each.ports for each in halted.usb] == [{1: "1-1", 2: ""}]
    await client.start("web1")
    await client.destroy("web1")
    assert await client.get_domains("halted") == ["web1"]
    await client.delete("web1")
    assert await client.get_domains("all") == ["Domain-0"]


async def test_node(client: XendClient) -> None:
    """What the node is, its messages and its log."""
    node = await client.get_node()
    assert (node.nr_cpus, node.host) == (4, "vm")
    assert b"(XEN) Xen version 4.4.4" in await client.dmesg()
    await client.dmesg_clear()
    assert await client.dmesg() == b""
    await client.create(web1())
    assert b"Domain web1 (1) created." in await client.log()
