"""Devices of domains, for `leasehold xend`: disks, networks, PCI functions, USB, and any other."""

from typing import Any

import click

from leasehold.events.errors import InvalidInputError
from leasehold.services.cli import render
from leasehold.services.cli.common import asynchronous
from leasehold.services.cli.xendparts import as_json_option, client_of, domain_argument, json_line, words
from leasehold.services.xend.devices import CONNECTION_STATES, PciFunction, UsbController, Vbd, Vif, VirtualDevice

_force = click.option("--force", is_flag=True, help="Do not wait for the guest to let go of it.")


@click.command()
@domain_argument
@click.argument("kind", metavar="TYPE")
@as_json_option
@asynchronous
async def devices(as_json: bool, domain: str, kind: str) -> None:
    """List the devices of DOMAIN of a TYPE: disk, network, pci, vusb, or any other of xend's."""
    found = await client_of().virtual_devices(domain, kind)
    if as_json:
        for each in found:
            json_line(each)
        return
    render.table(("type", "ref", "state", "attributes"), [_device_cells(each) for each in found])


def _device_cells(device: VirtualDevice) -> tuple[str, ...]:
    rest = dict(device.attributes)
    number = rest.pop("state", "")
    is_known = number.isdecimal() and int(number) < len(CONNECTION_STATES)
    return device.type, device.ref, CONNECTION_STATES[int(number)] if is_known else number, words(rest)


@click.command()
@domain_argument
@click.argument("kind", metavar="TYPE")
@click.argument("attributes", nargs=-1, metavar="NAME=VALUE …")
@asynchronous
async def attach(domain: str, kind: str, attributes: tuple[str, ...]) -> None:
    """Give DOMAIN any device, of these attributes: `attach web1 disk uname=phy:/dev/x dev=xvdb mode=rw`."""
    render.line(await client_of().virtual_device_create(domain, kind, _pairs(attributes)))


@click.command()
@domain_argument
@click.argument("kind", metavar="TYPE")
@click.argument("ref")
@_force
@asynchronous
async def detach(domain: str, kind: str, ref: str, force: bool) -> None:
    """Take any device from DOMAIN, by its reference in `devices`."""
    await client_of().virtual_device_destroy(domain, kind, ref, force=force)


def _pairs(texts: tuple[str, ...]) -> dict[str, str]:
    for each in texts:
        if "=" not in each:
            raise InvalidInputError(f"{each[:40]!r} is not of the form NAME=VALUE", field="attributes")
    return dict(each.split("=", 1) for each in texts)


@click.command("attach-disk")
@domain_argument
@click.argument("uname")
@click.argument("dev")
@click.option("--mode", type=click.Choice(("ro", "rw", "rw!")), default="rw", show_default=True)
@click.option("--backend", type=click.IntRange(0), default=0, help="The domid of the domain that serves it.")
@asynchronous
async def attach_disk(domain: str, uname: str, dev: str, mode: str, backend: int) -> None:
    """Give DOMAIN the disk UNAME (`phy:/dev/…`, `file:/…`) as its DEV (`xvdb`)."""
    render.line(await client_of().vbd_create(domain, Vbd(uname=uname, dev=dev, mode=mode, backend=backend)))


@click.command("detach-disk")
@domain_argument
@click.argument("dev")
@_force
@asynchronous
async def detach_disk(domain: str, dev: str, force: bool) -> None:
    """Take the disk DEV (its name or number) from DOMAIN."""
    await client_of().vbd_destroy(domain, dev, force=force)


@click.command("attach-nic")
@domain_argument
@click.option("--mac", default="", help="By default xend makes one up.")
@click.option("--bridge", default="")
@click.option("--ip", default="")
@click.option("--script", default="")
@click.option("--vifname", default="")
@click.option("--model", default="")
@click.option("--backend", type=click.IntRange(0), default=0, help="The domid of the domain that serves it.")
@asynchronous
async def attach_nic(domain: str, **fields: Any) -> None:
    """Give DOMAIN a network device."""
    render.line(await client_of().vif_create(domain, Vif(**fields)))


@click.command("detach-nic")
@domain_argument
@click.argument("ref")
@_force
@asynchronous
async def detach_nic(domain: str, ref: str, force: bool) -> None:
    """Take the network device REF (its number or MAC address) from DOMAIN."""
    await client_of().vif_destroy(domain, ref, force=force)


@click.command("attach-pci")
@domain_argument
@click.argument("address")
@click.option("--vdevfn", default="0x100", show_default=True, help="Where the guest sees it; 0x100: anywhere.")
@click.option("--option", "options", multiple=True, metavar="NAME=VALUE", help="Such as msitranslate=1.")
@asynchronous
async def attach_pci(domain: str, address: str, vdevfn: str, options: tuple[str, ...]) -> None:
    """Give DOMAIN the PCI function ADDRESS. This asks no ledger: see `leasehold lease`."""
    await client_of().virtual_device_create(domain, "pci", _pairs(options) | {"address": address, "vdevfn": vdevfn})


@click.command("detach-pci")
@domain_argument
@click.argument("address")
@asynchronous
async def detach_pci(domain: str, address: str) -> None:
    """Take the PCI function ADDRESS from DOMAIN."""
    await client_of().pci_detach(domain, PciFunction(address=address))


@click.command("pci-assignable")
@as_json_option
@asynchronous
async def pci_assignable(as_json: bool) -> None:
    """List the PCI functions that may be given to domains and are not. Over XML-RPC only."""
    for each in await client_of().pci_assignable():
        if as_json:
            json_line({"address": each})
        else:
            render.line(each)


@click.command("attach-usb")
@domain_argument
@click.argument("bus_id")
@click.option("--port", type=click.IntRange(1, 31), required=True)
@click.option("--controller", default="0", show_default=True, help="The reference of the controller (vusb).")
@asynchronous
async def attach_usb(domain: str, bus_id: str, port: int, controller: str) -> None:
    """Put the host's USB device BUS_ID (`1-1.4`, as sysfs names it) at a port of DOMAIN."""
    await client_of().usb_attach(domain, bus_id, port=port, controller=controller)


@click.command("detach-usb")
@domain_argument
@click.option("--port", type=click.IntRange(1, 31), required=True)
@click.option("--controller", default="0", show_default=True, help="The reference of the controller (vusb).")
@asynchronous
async def detach_usb(domain: str, port: int, controller: str) -> None:
    """Take what is at a port of DOMAIN away."""
    await client_of().usb_detach(domain, port=port, controller=controller)


@click.command("attach-usb-controller")
@domain_argument
@click.option("--version", type=click.IntRange(1, 2), default=2, show_default=True)
@click.option("--ports", type=click.IntRange(1, 31), default=8, show_default=True)
@asynchronous
async def attach_usb_controller(domain: str, version: int, ports: int) -> None:
    """Give DOMAIN a paravirtual USB controller."""
    controller = UsbController(version=version, ports=dict.fromkeys(range(1, ports + 1), ""))
    render.line(await client_of().usb_controller_create(domain, controller))


@click.command("usb-add")
@domain_argument
@click.argument("device")
@asynchronous
async def usb_add(domain: str, device: str) -> None:
    """Have the QEMU of DOMAIN hand on DEVICE (`host:046d:c31c`, `host:1.3`). Over XML-RPC only."""
    await client_of().usb_add(domain, device)


@click.command("usb-del")
@domain_argument
@click.argument("device")
@asynchronous
async def usb_del(domain: str, device: str) -> None:
    """Have the QEMU of DOMAIN no longer hand on DEVICE. Over XML-RPC only."""
    await client_of().usb_del(domain, device)


COMMANDS = (
    devices,
    attach,
    detach,
    attach_disk,
    detach_disk,
    attach_nic,
    detach_nic,
    attach_pci,
    detach_pci,
    pci_assignable,
    attach_usb,
    detach_usb,
    attach_usb_controller,
    usb_add,
    usb_del,
)
