"""The client's functions on the recordings: each asks what libxend or xm asked then, and tells what came of it."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from leasehold.events.errors import (
    InvalidInputError,
    XendError,
    XendFailedError,
    XendNotFoundError,
    XendUnsupportedError,
)
from leasehold.services.xend import address, calls, devices, sxp
from leasehold.services.xend.client import XendClient
from leasehold.services.xend.devices import IoPorts, PciFunction, UsbController, Vbd, Vif, VirtualDevice
from leasehold.services.xend.model import MIB, DomainConfig, Image, Live
from leasehold.services.xend.sxp import Sxp
from tests.xend.replay import Asked, recordings, replaying

NOW_S = 1795219809.43
"""Ten seconds after web1 was started."""
BOOT = "/usr/lib/xen-4.4/x/boot"
WEB1 = DomainConfig(
    name="web1",
    memory_bytes=512 * MIB,
    max_memory_bytes=1024 * MIB,
    vcpus=2,
    uuid="6a1f2c3d-0b1e-4c5d-8e9f-a0b1c2d3e4f5",
    on_poweroff="destroy",
    on_reboot="restart",
    on_crash="preserve",
    image=Image(
        kernel=f"{BOOT}/vmlinuz-pv", ramdisk=f"{BOOT}/initrd-pv", root="/dev/xvda1 ro", extra="quiet console=hvc0"
    ),
    vbds=(Vbd(uname="phy:/dev/vg0/web1", dev="xvda1"),),
    vifs=(Vif(mac="00:16:3e:11:22:33", bridge="xenbr0", vifname="web1.0", ip="10.0.0.5"),),
)
Call = Callable[[XendClient], Awaitable[Any]]

DONE: dict[int, tuple[Call, Any]] = {
    2: (lambda x: x.get_node(), lambda node: (node.host, node.total_memory_bytes) == ("vm", 16384 * MIB)),
    6: (lambda x: x.get_domains(), ["Domain-0"]),
    7: (lambda x: x.get_domains("all"), ["Domain-0", "web1"]),
    8: (lambda x: x.get_domains("paused"), ["web1"]),
    5: (lambda x: x.create(WEB1), lambda web1: (web1.name, web1.domid, web1.state) == ("web1", 1, "paused")),
    9: (lambda x: x.wait_for_devices("web1"), None),
    10: (lambda x: x.unpause("web1"), None),
    11: (lambda x: x.get_domain("web1"), lambda web1: web1.live.up_time_s == pytest.approx(10)),
    13: (lambda x: x.get_domain("1"), lambda web1: web1.name == "web1"),
    14: (lambda x: x.get_domain(WEB1.uuid), lambda web1: web1.name == "web1"),
    23: (lambda x: x.pause("web1"), None),
    37: (lambda x: x.sysrq("web1", "h"), None),
    41: (lambda x: x.set_memory("web1", 640 * MIB), None),
    49: (lambda x: x.vcpus("web1"), lambda vcpus: [each["number"] for each in vcpus] == ["0", "1"]),
    52: (lambda x: x.ask(calls.devices_of("web1", "network")), lambda value: len(value) == 1),
    55: (
        lambda x: x.ask(calls.devices_of("gpu-hvm", "vusb")),
        [[b"0", sxp.read(b"((backend-id 0) (state 4) (backend /local/domain/0/backend/vusb/2/0) (usb-ver 2)"
                         b" (num-ports 4) (port (1 1-1) (2 '') (3 '') (4 '')))")]],
    ),
    56: (
        lambda x: x.virtual_devices("cold-db", "disk"),
        [VirtualDevice(type="vbd", ref="51712", attributes={
            "uuid": "fc89a76b-c20e-e4f0-ea75-3ed7713afe57", "bootable": "1", "driver": "paravirtualised",
            "dev": "xvda", "uname": "file:/srv/db.img", "mode": "w"})],
    ),
    61: (lambda x: x.vbd_create("web1", Vbd(uname="phy:/dev/vg0/data", dev="xvdb", mode="rw")), "51728"),
    71: (lambda x: x.vif_create("web1", Vif(mac="00:16:3e:77:88:99", bridge="xenbr0")), "1"),
    74: (lambda x: x.vif_create("web1", Vif(bridge="xenbr0")), "2"),
    76: (lambda x: x.vif_destroy("web1", "1"), None),
    77: (lambda x: x.vif_destroy("web1", Vif(mac="00:16:3e:11:22:33")), None),
    79: (lambda x: x.pci_attach("gpu-hvm", "0000:03:00.1"), None),
    85: (lambda x: x.pci_attach("web1", PciFunction(address="0000:07:00.0")), None),
    88: (lambda x: x.pci_detach("gpu-hvm", "0000:03:00.1"), None),
    94: (lambda x: x.usb_attach("gpu-hvm", "1-2", port=2), None),
    97: (lambda x: x.usb_controller_create("web1", UsbController(version=1, ports={1: "2-1.4", 2: ""})), "0"),
    103: (lambda x: x.dmesg(), lambda text: text.startswith(b"(XEN) Xen version 4.4.4")),
    104: (lambda x: x.dmesg_clear(), None),
    107: (lambda x: x.node_shutdown(), None),
    155: (lambda x: x.wait_for_devices("cold-db"), None),
    163: (lambda x: x.get_domains("all"), lambda names: "Domain-0" in names),
    173: (lambda x: x.shutdown("web1"), None),
    178: (lambda x: x.reboot("web1"), None),
    220: (lambda x: x.destroy("web1"), None),
}  # fmt: skip
"""By recording: how it is asked, and what comes of it: a value, or what must hold of it."""

FAILS: dict[int, tuple[Call, type[XendError]]] = {
    28: (lambda x: x.pause("Domain-0"), XendFailedError),
    29: (lambda x: x.pause("cold-db"), XendFailedError),
    34: (lambda x: x.rename("web-one", "gpu-hvm"), XendFailedError),
    40: (lambda x: x.shutdown("Domain-0"), XendFailedError),
    46: (lambda x: x.set_max_memory("web1", 16 * MIB), XendFailedError),
    58: (lambda x: x.virtual_devices("web1", "toaster"), XendFailedError),
    73: (lambda x: x.vif_create("web1", Vif(mac="00:16:3e:77:88:99", bridge="xenbr0")), XendFailedError),
    70: (lambda x: x.vbd_destroy("web1", "xvdb"), XendFailedError),
    82: (lambda x: x.pci_attach("web1", "0000:03:00.1"), XendFailedError),
    89: (lambda x: x.pci_detach("gpu-hvm", "0000:03:00.1"), XendFailedError),
    91: (lambda x: x.pci_detach("web1", "0000:07:00.0"), XendFailedError),
    124: (lambda x: x.create(WEB1), XendFailedError),
    136: (lambda x: x.get_domain("nope"), XendNotFoundError),
    148: (lambda x: x.restore("/nonexistent"), XendFailedError),
    151: (lambda x: x.start("web1"), XendFailedError),
    152: (lambda x: x.delete("web1"), XendFailedError),
    158: (lambda x: x.destroy("Domain-0"), XendFailedError),
}


def same(value: Sxp) -> Any:
    """A configuration without what does not matter: order, and the backend that is meant anyway."""
    if isinstance(value, bytes):
        return value
    return sorted((same(each) for each in value if each != [b"backend", b"0"]), key=repr)


def assert_asked(asked: Asked, recorded: Asked) -> None:
    """What the client asked is what was asked then."""
    assert (asked.method, asked.path.rstrip("/")) == (recorded.method, recorded.path.rstrip("/"))
    ours, theirs = dict(asked.fields), dict(recorded.fields)
    for fields in (ours, theirs):
        if "config" in fields:
            fields["config"] = same(sxp.read(fields["config"].encode()))
    assert ours == theirs
    assert asked.headers["accept"] == "application/sxp"
    assert "user-agent" not in asked.headers
    if asked.method == "POST":
        assert asked.headers["content-type"] == "application/x-www-form-urlencoded"
        assert asked.headers["content-length"] == str(len(asked.body))


def a_client(at: address.Address, timeout_s: float = 20.0) -> XendClient:
    """A client of this one, at a time shortly after the recordings began."""
    return XendClient(at, timeout_s=timeout_s, long_timeout_s=timeout_s, clock=lambda: NOW_S)


@pytest.mark.parametrize("number", DONE)
async def test_what_is_done(number: int, tmp_path: Path) -> None:
    """The request is the recorded one, and its answer becomes the value told of here."""
    recording = recordings()[number]
    call, expected = DONE[number]
    async with replaying(tmp_path, recording.answer, lingers=recording.lingers) as replay:
        value = await call(a_client(replay.address))
    assert_asked(replay.asked[0], recording.asked)
    assert expected(value) if callable(expected) else value == expected


@pytest.mark.parametrize("number", FAILS)
async def test_what_fails(number: int, tmp_path: Path) -> None:
    """The request is the recorded one, and its answer becomes an error that names what was asked."""
    recording = recordings()[number]
    call, expected = FAILS[number]
    async with replaying(tmp_path, recording.answer, lingers=recording.lingers) as replay:
        with pytest.raises(XendError) as caught:
            await call(a_client(replay.address))
    assert_asked(replay.asked[0], recording.asked)
    assert type(caught.value) is expected
    assert caught.value.op


async def domain_of(number: int, path: Path) -> Any:
    """The domain in the answer of a recording."""
    async with replaying(path, recordings()[number].answer) as replay:
        return await a_client(replay.address).get_domain("any")


async def test_a_running_domain(tmp_path: Path) -> None:
    """Everything that libxend's structure has, from the genuine answer; memory in bytes."""
    web1 = await domain_of(11, tmp_path)
    assert (web1.name, web1.uuid, web1.domid, web1.state, web1.kind) == ("web1", WEB1.uuid, 1, "running", "pv")
    assert (web1.memory_bytes, web1.max_memory_bytes, web1.vcpus) == (512 * MIB, 1024 * MIB, 2)
    assert (web1.on_poweroff, web1.on_reboot, web1.on_crash) == ("destroy", "restart", "preserve")
    assert web1.extra == "root=/dev/xvda1 ro quiet console=hvc0"
    assert [(each.uname, each.dev, each.kind, each.mode) for each in web1.vbds] == [
        ("phy:/dev/vg0/web1", "xvda1", "disk", "w")
    ]
    assert [(each.mac, each.ip, each.vifname) for each in web1.vifs] == [("00:16:3e:11:22:33", "10.0.0.5", "web1.0")]
    assert web1.live is not None
    assert web1.live.up_time_s == pytest.approx(10.0)
    assert web1.live == Live(
        blocked=True, cpu_time_s=0.002469134, up_time_s=web1.live.up_time_s, start_time_s=1795219799.43,
        online_vcpus=2, vcpu_avail=2,
    )  # fmt: skip


async def test_domains_with_host_devices(tmp_path: Path) -> None:
    """PCI and USB of a running domain, a halted one and a crashed one, in both shapes that xend has for each."""
    running, halted = await domain_of(17, tmp_path), await domain_of(19, tmp_path)
    assert [(each.address, each.vdevfn, each.options) for each in running.pci] == [
        ("0000:03:00.0", 0x20, {}),
        ("0000:06:00.0", 0x28, {"msitranslate": "1"}),
    ]
    assert [(each.version, each.ports) for each in running.usb] == [(2, {1: "1-1", 2: "", 3: "", 4: ""})]
    assert running.usb_host == ("host:0529:0001",) and running.kind == "hvm"
    assert (halted.domid, halted.state, halted.live) == (-1, "halted", None)
    assert [(each.address, each.vdevfn) for each in halted.pci] == [("0000:07:00.0", 0x100)]
    again = await domain_of(193, tmp_path)
    assert (again.domid, again.state, again.live) == (-1, "halted", None), "the old times of a domain that ran"
    crashed = await domain_of(221, tmp_path)
    assert (crashed.state, crashed.live.crashed, crashed.live.paused) == ("crashed", True, True)
    assert len(crashed.pci) == 2
    dom0 = await domain_of(143, tmp_path)
    assert (dom0.domid, dom0.uuid, dom0.live.running, dom0.live.start_time_s) == (
        0, "00000000-0000-0000-0000-000000000000", True, 0.0
    )  # fmt: skip


async def test_the_host(tmp_path: Path) -> None:
    """Everything that libxend's structure has, over both protocols; sockets are computed."""
    async with replaying(tmp_path, recordings()[2].answer) as replay:
        node = await a_client(replay.address).get_node()
    async with replaying(tmp_path, recordings()[203].answer, protocol=address.XMLRPC) as replay:
        over_rpc = await a_client(replay.address).get_node()
    assert (node.system, node.machine, node.nr_cpus, node.sockets_per_node) == ("Linux", "x86_64", 4, 1)
    assert (node.xen_major, node.xen_minor, node.xen_extra, node.xend_config_format) == (4, 4, ".4", 4)
    assert (node.total_memory_bytes, node.free_memory_bytes) == (16384 * MIB, 12224 * MIB)
    assert node.cc_compile_by == "root" and node.xen_pagesize == 4096
    assert over_rpc.free_memory_bytes == 11200 * MIB
    assert (over_rpc.hw_caps, over_rpc.xen_caps) == (node.hw_caps, node.xen_caps)


async def test_over_xmlrpc(tmp_path: Path) -> None:
    """Names, a domain, functions that are free, devices, messages: as they are over HTTP."""

    async def over_rpc(number: int, call: Call) -> Any:
        async with replaying(tmp_path, recordings()[number].answer, protocol=address.XMLRPC) as replay:
            value = await call(a_client(replay.address))
        (asked,) = replay.asked
        assert (asked.method, asked.path, asked.headers["content-type"]) == ("POST", "/RPC2", "text/xml")
        recorded = recordings()[number].asked.body
        assert b"".join(asked.body.split()) == b"".join(
            recorded.replace(b'<?xml version="1.0"?>', b"<?xml version='1.0'?>").split()
        )
        return value

    assert await over_rpc(196, lambda x: x.get_domains()) == ["Domain-0", "gpu-hvm"]
    assert await over_rpc(197, lambda x: x.get_domains("all")) == ["Domain-0", "gpu-hvm"]
    gpu = await over_rpc(199, lambda x: x.get_domain("gpu-hvm"))
    assert (gpu.name, gpu.domid, gpu.state, gpu.live.vcpu_avail) == ("gpu-hvm", 7, "running", 0)
    assert [each.address for each in gpu.pci] == ["0000:03:00.0", "0000:06:00.0"]
    assert gpu.pci[1].options == {"msitranslate": "1"}
    found = await over_rpc(200, lambda x: x.ask(calls.devices_of("gpu-hvm", "pci")))
    assert [sxp.text(sxp.child(each, "key")) for each in found] == ["03:00.0", "06:00.0"]
    functions = [devices.pci_function_of(each) for each in found]
    assert [each.options for each in functions if each is not None] == [{}, {"msitranslate": "1"}]
    assert await over_rpc(202, lambda x: x.pci_assignable()) == ["0000:03:00.1", "0000:07:00.0"]
    assert await over_rpc(205, lambda x: x.dmesg()) == b""


async def test_a_device_is_told_of_with_the_name_of_its_backend(tmp_path: Path) -> None:
    """`bkdom-name` stands for `backend-id`, as in the proposal for virtual devices, whoever is named like a number."""
    listed, dom0, all_names = recordings()[67], recordings()[143], recordings()[7]
    async with replaying(tmp_path, listed.answer, dom0.answer) as replay:
        found = await a_client(replay.address).virtual_devices("web1", "disk")
    assert [each.path for each in replay.asked] == ["/xend/domain/web1", "/xend/domain/0"]
    assert [(each.ref, each.attributes["bkdom-name"]) for each in found] == [
        ("51713", "Domain-0"),
        ("51728", "Domain-0"),
    ]
    assert list(found[0].attributes) == [
        *("backend", "device-type", "event-channel", "ring-ref", "state", "virtual-device", "bkdom-name")
    ]
    # A domain that is named "0": it has another domid, and so it is not the one.
    hidden = recordings()[11].answer
    async with replaying(
        tmp_path, listed.answer, hidden, recordings()[142].answer, all_names.answer, dom0.answer
    ) as it:
        found = await a_client(it.address).virtual_devices("web1", "disk")
    assert found[0].attributes["bkdom-name"] == "Domain-0"


async def test_a_device_is_made_with_the_domid_of_its_backend(tmp_path: Path) -> None:
    """`backend` may be a name; `mode` may be `ro` or `rw`. Any attribute else goes as it is."""
    async with replaying(tmp_path, recordings()[143].answer, recordings()[61].answer) as replay:
        ref = await a_client(replay.address).virtual_device_create(
            "web1", "disk", {"uname": "phy:/dev/vg0/data", "dev": "xvdb", "mode": "rw", "backend": "Domain-0"}
        )
    assert ref == "51728"
    assert_asked(replay.asked[1], recordings()[61].asked)
    async with replaying(tmp_path, recordings()[19].answer) as replay:
        with pytest.raises(InvalidInputError, match="backend: cold-db does not run"):
            await a_client(replay.address).virtual_device_create("web1", "disk", {"dev": "xvdb", "backend": "cold-db"})


async def test_pci_functions_as_virtual_devices(tmp_path: Path) -> None:
    """They are listed from the domain's description, and made and destroyed by their address."""
    async with replaying(tmp_path, recordings()[17].answer) as replay:
        found = await a_client(replay.address).virtual_devices("gpu-hvm", "pci")
    assert [each.ref for each in found] == ["0000:03:00.0", "0000:06:00.0"]
    assert found[1].attributes["opts-msitranslate"] == "1"
    async with replaying(tmp_path, recordings()[79].answer) as replay:
        await a_client(replay.address).virtual_device_create("gpu-hvm", "pci", {"address": "0000:03:00.1"})
        await a_client(replay.address).virtual_device_destroy("gpu-hvm", "pci", "0000:03:00.1")
    assert_asked(replay.asked[0], recordings()[79].asked)
    assert_asked(replay.asked[1], recordings()[88].asked)


async def test_the_whole_pci_platform_is_destroyed_without_its_configuration(tmp_path: Path) -> None:
    """xend would take it away and then fail, if it were to forget what it cannot find."""
    async with replaying(tmp_path, recordings()[209].answer) as replay:
        await a_client(replay.address).virtual_device_destroy("app2", "pci", "0")
    assert_asked(replay.asked[0], recordings()[209].asked)


async def test_all_domains(tmp_path: Path) -> None:
    """Over HTTP one request describes those that run, one names all, and each of the others is asked for."""
    gone, halted = recordings()[136], recordings()[19]
    body = b"(Domain-0 cold-db gone gpu-hvm web1)"
    names = b"HTTP/1.1 200 OK\r\nContent-length: %d\r\nContent-type: application/sxp\r\n\r\n%s" % (len(body), body)
    async with replaying(tmp_path, recordings()[142].answer, names, halted.answer, gone.answer) as replay:
        found = await a_client(replay.address).domains()
    assert [(each.name, each.state) for each in found] == [
        ("Domain-0", "running"), ("web1", "running"), ("gpu-hvm", "running"), ("cold-db", "halted")
    ]  # fmt: skip
    assert sorted(each.path for each in replay.asked) == [
        "/xend/domain", "/xend/domain", "/xend/domain/cold-db", "/xend/domain/gone"
    ]  # fmt: skip


async def test_saving_a_domain_that_does_not_run_is_refused_at_once(tmp_path: Path) -> None:
    """xend would take the request and never answer."""
    async with replaying(tmp_path, recordings()[19].answer) as replay:
        with pytest.raises(XendFailedError, match="cold-db does not run"):
            await a_client(replay.address).save("cold-db", "/var/lib/cold-db.save")
        assert len(replay.asked) == 1


async def test_what_a_protocol_does_not_offer_is_not_asked(tmp_path: Path) -> None:
    """Functions that are free over HTTP, and the host's end over XML-RPC, are errors without a request."""
    async with replaying(tmp_path, b"") as replay:
        x = a_client(replay.address)
        for call in (x.pci_assignable(), x.usb_add("gpu-hvm", "host:046d:c31c"), x.usb_del("gpu-hvm", "host:1.2")):
            with pytest.raises(XendUnsupportedError, match="XML-RPC only"):
                await call
        over_rpc = a_client(address.Address(address.XMLRPC, path=replay.address.path))
        for call in (over_rpc.node_shutdown(), over_rpc.node_restart()):
            with pytest.raises(XendUnsupportedError, match="HTTP only"):
                await call
        assert replay.connections == 0


BAD: dict[str, tuple[Call, str]] = {
    "no domain": (lambda x: x.get_domain(""), "domain"),
    "long domain": (lambda x: x.pause("x" * 256), "domain"),
    "state": (lambda x: x.get_domains("rinning"), "state"),
    "not MiB": (lambda x: x.set_memory("web1", 512 * MIB + 1), "memory_bytes"),
    "no memory": (lambda x: x.set_max_memory("web1", 0), "memory_bytes"),
    "name": (lambda x: x.rename("web1", "web 1"), "name"),
    "key": (lambda x: x.sysrq("web1", "104"), "key"),
    "reason": (lambda x: x.shutdown("web1", "tired"), "reason"),
    "path": (lambda x: x.save("web1", "here"), "file"),
    "mode": (lambda x: x.vbd_create("web1", Vbd(uname="phy:/dev/x", dev="xvdb", mode="x")), "mode"),
    "dev": (lambda x: x.vbd_create("web1", Vbd(uname="phy:/dev/x")), "dev"),
    "uname": (lambda x: x.vbd_create("web1", Vbd(dev="xvdb")), "uname"),
    "mac": (lambda x: x.vif_create("web1", Vif(mac="00:16")), "mac"),
    "pci": (lambda x: x.pci_attach("web1", "3:0"), "device"),
    "vdevfn": (lambda x: x.pci_attach("web1", PciFunction(address="0000:03:00.0", vdevfn=0x101)), "vdevfn"),
    "port": (lambda x: x.usb_attach("web1", "1-1", port=0), "port"),
    "bus id": (lambda x: x.usb_attach("web1", "0529:0001", port=1), "bus_id"),
    "no bus id": (lambda x: x.usb_attach("web1", "", port=1), "bus_id"),
    "ports": (lambda x: x.usb_controller_create("web1", UsbController(ports={2: ""})), "ports"),
    "type": (lambda x: x.virtual_devices("web1", "a/b"), "type"),
    "attribute": (lambda x: x.virtual_device_create("web1", "disk", {"a b": ""}), "attributes"),
    "vcpus": (lambda x: x.set_vcpus("web1", 0), "vcpus"),
    "too long": (lambda x: x.create(["vm", ["name", "x" * 10_000]]), "config"),
    "restart": (lambda x: x.create(_changed(on_crash="explode")), "on_crash"),
    "kernel": (lambda x: x.create(_changed(image=Image(kernel=""))), "image.kernel"),
    "ioports": (lambda x: x.create(_changed(ioports=(IoPorts(first=9, last=8),))), "ioports"),
    "less": (lambda x: x.create(_changed(max_memory_bytes=MIB)), "max_memory_bytes"),
}


def _changed(**fields: Any) -> DomainConfig:
    return msgspec.structs.replace(WEB1, **fields)


@pytest.mark.parametrize("case", BAD)
async def test_bad_input_is_named_and_not_sent(case: str, tmp_path: Path) -> None:
    """The error names the field, and nothing reaches xend."""
    call, field = BAD[case]
    async with replaying(tmp_path, recordings()[11].answer) as replay:
        with pytest.raises(InvalidInputError) as caught:
            await call(a_client(replay.address))
        assert replay.connections == 0
    assert field in (caught.value.field, *str(caught.value).split(":"))


def test_a_wrong_state_says_which_are_right() -> None:
    """An error is of help."""
    with pytest.raises(InvalidInputError, match="'rinning' is none of all, running, paused"):
        calls.names("rinning")
