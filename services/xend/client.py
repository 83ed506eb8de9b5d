"""A client of xend: what libxend's header and the proposal for virtual devices offered, PCI and USB, and some more.

Nothing is kept between calls but which address was found; each call is a request on a connection of its own. Any number
may be made at once: a few are sent, the others wait, since xend's queue of connections has five places. What xend
refuses or fails at is an exception (`XendError` and those derived from it), never an empty answer. `docs/xend.md` has a
table of all calls with what they send, and what the genuine server cannot do.

    xend = XendClient("xmlrpc:")
    for name in await xend.get_domains("all"):
        print(name, (await xend.get_domain(name)).state)
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Final

from leasehold.events import limits
from leasehold.events.errors import (
    InvalidInputError,
    XendError,
    XendFailedError,
    XendNotFoundError,
    XendReplyError,
    XendUnavailableError,
)
from leasehold.services.xend import address as addresses
from leasehold.services.xend import answers, calls, devices, http, model, rpc, sxp
from leasehold.services.xend.address import Address
from leasehold.services.xend.calls import Call
from leasehold.services.xend.devices import PciFunction, UsbController, Vbd, Vif, VirtualDevice
from leasehold.services.xend.model import Domain, DomainConfig, Node
from leasehold.services.xend.sxp import Printable, Sxp

TIMEOUT_S: Final = 30.0
"""Looking a domain up waits while another is being made."""
LONG_TIMEOUT_S: Final = 900.0
"""xend waits 100 s for each device of a domain, and as long as a disk needs for its memory."""


class XendClient:
    """One xend.

    Args:
        address: as `leasehold.services.xend.address.parse` reads it; None: the first of `USUAL` that answers.
        timeout_s: for a request with its answer.
        long_timeout_s: for one that waits for a guest, a script or a disk.
        clock: gives seconds since the epoch; a domain's `up_time_s` is by it.
    """

    def __init__(
        self,
        address: Address | str | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        long_timeout_s: float = LONG_TIMEOUT_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._address = addresses.parse(address) if isinstance(address, str) else address
        self._timeout_s = timeout_s
        self._long_timeout_s = long_timeout_s
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._room = asyncio.Semaphore(0)

    async def ask(self, call: Call) -> Sxp:
        """Ask anything of `leasehold.services.xend.calls`, and give the answer as it is read.

        Raises:
            XendError: see the classes derived from it.
            InvalidInputError: it cannot be sent.
        """
        address = await self.address()
        if call.is_long:
            return await self._asked(address, call, self._long_timeout_s)
        async with self._turn():
            return await self._asked(address, call, self._timeout_s)

    def _turn(self) -> asyncio.Semaphore:
        """What short requests wait for: connections that find no place in xend's queue may wait for very long."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._room = loop, asyncio.Semaphore(limits.POLL_REQUESTS_MAX)
        return self._room

    async def _asked(self, address: Address, call: Call, timeout_s: float) -> Sxp:
        if address.protocol == addresses.XMLRPC:
            reply = await http.exchange(address, calls.rpc_request(call), timeout_s=timeout_s)
            return rpc.value_of(reply, call.op)
        reply = await http.exchange(address, calls.http_request(call), timeout_s=timeout_s)
        if call.is_text:
            return answers.text_of(reply, call.op)
        return answers.value_of(reply, call.op, may_be_empty=call.method != "GET")

    async def address(self) -> Address:
        """The address that is spoken to; the first time, it is looked for if none was given.

        Raises:
            XendUnavailableError: no xend answers at any of the usual ones.
        """
        if self._address is None:
            self._address = await find(timeout_s=min(self._timeout_s, http.CONNECT_TIMEOUT_S))
        return self._address

    # --- domains ----------------------------------------------------------------------------------------------------

    async def get_domains(self, state: str = "running") -> list[str]:
        """The names of the domains in a state (`model.STATES`), sorted. Only `all` has those that are paused."""
        answer = await self.ask(calls.names(state))
        return [sxp.text(each) for each in _list(answer, "get_domains")]

    async def get_domain(self, domain: str) -> Domain:
        """One domain, with how it fares at this moment.

        Raises:
            XendNotFoundError: there is none; one that was listed may have gone since.
        """
        return self._domain(await self.ask(calls.domain(domain)), "get_domain")

    async def domains(self, state: str = "all") -> list[Domain]:
        """The domains in a state, described.

        Over XML-RPC this is one request. Over HTTP, one describes those that run, one names all, and each of the others
        is asked for, a few at a time; of two such with the same name only one is found.
        """
        in_one = (await self.address()).protocol == addresses.XMLRPC or state == "running"
        found: list[Domain] = []
        if in_one or state == "all":
            answer = await self.ask(calls.described(state))
            found = [self._domain(each, "domains") for each in _list(answer, "domains")]
        if in_one:
            return found
        known = {each.name for each in found}
        return found + await self._each([name for name in await self.get_domains(state) if name not in known])

    async def _each(self, names: list[str]) -> list[Domain]:
        """The domains with these names, but for those that have gone since."""

        async def got(name: str) -> Domain | None:
            try:
                return await self.get_domain(name)
            except XendNotFoundError:
                return None

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(got(name)) for name in names]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors
        return [domain for task in tasks if (domain := task.result()) is not None]

    async def create(self, config: DomainConfig | Printable) -> Domain:
        """Make a domain, from its fields or from SXP (`(vm …)`), which can say more. It is paused: wait for its
        devices, then unpause it.
        """
        printable = model.config_sxp(config) if isinstance(config, DomainConfig) else config
        return self._domain(await self.ask(calls.create(printable)), "create")

    async def define(self, config: DomainConfig | Printable) -> None:
        """Make xend know a domain without starting it; it may claim devices that others have."""
        await self.ask(calls.define(model.config_sxp(config) if isinstance(config, DomainConfig) else config))

    async def start(self, domain: str) -> None:
        """Start one that xend knows and that does not run."""
        await self.ask(calls.simple(domain, "start", is_long=True))

    async def delete(self, domain: str) -> None:
        """Make xend forget one that does not run."""
        await self.ask(calls.simple(domain, "delete"))

    async def wait_for_devices(self, domain: str) -> None:
        """Wait until all its devices are connected. One that does not come up is taken away, and is an error."""
        await self.ask(calls.wait_for_devices(domain))

    async def pause(self, domain: str) -> None:
        """Give it no CPU. One that is paused stays so."""
        await self.ask(calls.simple(domain, "pause"))

    async def unpause(self, domain: str) -> None:
        """Let it run."""
        await self.ask(calls.simple(domain, "unpause"))

    async def rename(self, domain: str, name: str) -> None:
        """Give it another name; the old one is gone at once."""
        await self.ask(calls.rename(domain, name))

    async def sysrq(self, domain: str, key: str) -> None:
        """Press a key of SysRq: the letter itself."""
        await self.ask(calls.sysrq(domain, key))

    async def reboot(self, domain: str) -> None:
        """Ask it to reboot, which it need not do."""
        await self.ask(calls.shutdown(domain, "reboot"))

    async def shutdown(self, domain: str, reason: str = "poweroff") -> None:
        """Ask it to shut down, which it need not do."""
        await self.ask(calls.shutdown(domain, reason))

    async def destroy(self, domain: str) -> None:
        """End it at once. It is no longer listed then, and may still hold its devices for a while."""
        await self.ask(calls.simple(domain, "destroy"))

    async def reset(self, domain: str) -> None:
        """End it at once, and start it anew."""
        await self.ask(calls.simple(domain, "reset", is_long=True))

    async def save(self, domain: str, path: str) -> None:
        """Write it to a file on the host, and end it.

        Raises:
            XendFailedError: also if it does not run, of which xend would say nothing for ever.
        """
        call = calls.save(domain, path)
        if (await self.get_domain(domain)).domid < 0:
            raise XendFailedError(f"{domain} does not run", op=call.op)
        await self.ask(call)

    async def restore(self, path: str) -> None:
        """Bring one back from a file on the host. It runs then."""
        await self.ask(calls.restore(path))

    async def dump(
        self, domain: str, path: str, *, live: bool = False, crash: bool = False, reset: bool = False
    ) -> None:
        """Write its memory to a file on the host, while it runs if `live`; and end or reset it, if asked to."""
        await self.ask(calls.dump(domain, path, live=live, crash=crash, reset=reset))

    async def set_max_memory(self, domain: str, memory_bytes: int) -> None:
        """How much memory it may have: a whole number of MiB."""
        await self.ask(calls.set_max_memory(domain, memory_bytes))

    async def set_memory(self, domain: str, memory_bytes: int) -> None:
        """How much memory it is to have: a whole number of MiB. It need not get there."""
        await self.ask(calls.set_memory(domain, memory_bytes))

    async def set_vcpus(self, domain: str, vcpus: int) -> None:
        """How many virtual CPUs it is to have online."""
        await self.ask(calls.set_vcpus(domain, vcpus))

    async def vcpus(self, domain: str) -> list[dict[str, str]]:
        """What its virtual CPUs do: `number`, `online`, `cpu`, `cpu_time`, …, as xend has them."""
        answer = await self.ask(calls.vcpus(domain))
        return [devices.attributes_of(each) for each in sxp.children(answer, "vcpu")]

    # --- devices ----------------------------------------------------------------------------------------------------

    async def vbd_create(self, domain: str, vbd: Vbd) -> str:
        """Give it a block device, and wait for that. The result is what it is destroyed by."""
        return _ref(await self.ask(calls.device_create(domain, devices.vbd_sxp(vbd))))

    async def vbd_destroy(self, domain: str, dev: Vbd | str, *, force: bool = False) -> None:
        """Take a block device away: by its name in the guest, or its number."""
        await self.ask(calls.device_destroy(domain, "vbd", dev.dev if isinstance(dev, Vbd) else dev, force=force))

    async def vif_create(self, domain: str, vif: Vif) -> str:
        """Give it a network device, and wait for that. The result is what it is destroyed by."""
        return _ref(await self.ask(calls.device_create(domain, devices.vif_sxp(vif))))

    async def vif_destroy(self, domain: str, dev: Vif | str, *, force: bool = False) -> None:
        """Take a network device away: by its number, or its MAC address."""
        await self.ask(calls.device_destroy(domain, "vif", dev.mac if isinstance(dev, Vif) else dev, force=force))

    async def pci_attach(self, domain: str, function: PciFunction | str) -> None:
        """Give it a PCI function of the host: an address, or more said of it. xend refuses one that another has."""
        await self._pci_change(domain, function, "Initialising")

    async def pci_detach(self, domain: str, function: PciFunction | str) -> None:
        """Take a PCI function away."""
        await self._pci_change(domain, function, "Closing")

    async def pci_assignable(self) -> list[str]:
        """The PCI functions that may be given to a domain and are not: their addresses. Over XML-RPC only."""
        answer = _list(await self.ask(calls.pci_assignable()), "pci_assignable")
        found = [devices.pci_function_of(each) for each in answer]
        if None in found:
            # One less would be taken for one that some domain has.
            raise XendReplyError("a function without an address", op="pci_assignable")
        return [each.address for each in found if each is not None]

    async def usb_attach(self, domain: str, bus_id: str, *, port: int, controller: str = "0") -> None:
        """Put a USB device of the host (`1-1.4`) at a port. Whether another domain has it, xend does not look."""
        if not bus_id:
            raise InvalidInputError("which device, as sysfs names it, is missing (1-1.4)", field="bus_id")
        await self._configure(domain, devices.usb_port_sxp(port, bus_id), controller)

    async def usb_detach(self, domain: str, *, port: int, controller: str = "0") -> None:
        """Take what is at a port away."""
        await self._configure(domain, devices.usb_port_sxp(port, ""), controller)

    async def usb_controller_create(self, domain: str, controller: UsbController) -> str:
        """Give it a paravirtual USB controller. The result is what it is destroyed by."""
        return _ref(await self.ask(calls.device_create(domain, devices.usb_sxp(controller))))

    async def usb_add(self, domain: str, device: str) -> None:
        """Have QEMU hand on a USB device (`host:046d:c31c`). Over XML-RPC only; it is shown nowhere afterwards."""
        await self.ask(calls.usb_hand_on(domain, device, "usb_add"))

    async def usb_del(self, domain: str, device: str) -> None:
        """Have QEMU no longer hand on a USB device. Over XML-RPC only."""
        await self.ask(calls.usb_hand_on(domain, device, "usb_del"))

    async def virtual_devices(self, domain: str, kind: str) -> list[VirtualDevice]:
        """Its devices of a type (`disk`, `network`, or in xend's words), with what is told of each.

        PCI functions are taken from the domain's description: what xend shows of them here is Python.
        """
        kind = devices.type_of(kind)
        if kind == "pci":
            answer = await self.ask(calls.domain(domain))
            return [
                VirtualDevice(type=kind, ref=function.address, attributes=devices.attributes_of(each))
                for name, device in devices.devices_in(answer)
                for each in (sxp.children(device, "dev") if name == kind else ())
                if (function := devices.pci_function_of(each)) is not None
            ]
        found = list(devices.listed(_list(await self.ask(calls.devices_of(domain, kind)), "devices"), kind))
        names: dict[str, str] = {}
        for each in found:
            backend = each.attributes.pop("backend-id", "")
            if backend:
                if backend not in names:
                    names[backend] = await self._name_of(backend) if backend.isdecimal() else ""
                each.attributes["bkdom-name"] = names[backend]
        return found

    async def virtual_device_create(self, domain: str, kind: str, attributes: Mapping[str, str]) -> str:
        """Give it a device with these attributes. The result is what it is destroyed by.

        `backend` (or `bkdom-name`) is the name or domid of the domain that serves it; `mode` is `ro` or `rw`, or in
        xend's words. A PCI function needs `address`, which is also its reference.
        """
        kind = devices.type_of(kind)
        told = dict(attributes)
        if kind == "pci":
            function = _pci_of(told)
            await self.pci_attach(domain, function)
            return function.address
        backend = told.pop("bkdom-name", "") or told.pop("backend", "")
        if backend:
            told["backend"] = await self._domid_of(backend)
        return _ref(await self.ask(calls.device_create(domain, devices.any_sxp(kind, told))))

    async def virtual_device_destroy(self, domain: str, kind: str, ref: str, *, force: bool = False) -> None:
        """Take a device away, by the reference that it has in `virtual_devices`."""
        if devices.type_of(kind) == "pci" and ":" in ref:
            await self.pci_detach(domain, ref)
            return
        await self.ask(calls.device_destroy(domain, kind, ref, force=force))

    # --- the host ---------------------------------------------------------------------------------------------------

    async def get_node(self) -> Node:
        """The host."""
        try:
            return model.node_of(await self.ask(calls.node()))
        except InvalidInputError as error:
            raise XendReplyError(str(error), op="get_node") from error

    async def node_shutdown(self) -> None:
        """Ask for the host to be shut down, which xend 4.4 answers and does not do. Over HTTP only."""
        await self.ask(calls.node_op("node_shutdown", "shutdown"))

    async def node_restart(self) -> None:
        """Ask for the host to be restarted, which xend 4.4 answers and does not do. Over HTTP only."""
        await self.ask(calls.node_op("node_restart", "reboot"))

    async def dmesg(self) -> bytes:
        """The hypervisor's messages, as it wrote them."""
        return _text(await self.ask(calls.dmesg()), "dmesg")

    async def dmesg_clear(self) -> None:
        """Forget the hypervisor's messages."""
        await self.ask(calls.dmesg_clear())

    async def log(self) -> bytes:
        """xend's own log since it was last rotated: up to 1 MiB."""
        return _text(await self.ask(calls.log()), "log")

    # --- parts ------------------------------------------------------------------------------------------------------

    def _domain(self, value: Sxp, op: str) -> Domain:
        try:
            return model.domain_of(value, now_s=self._clock())
        except InvalidInputError as error:
            raise XendReplyError(str(error), op=op) from error

    async def _configure(self, domain: str, config: Printable, devid: str = "0") -> None:
        answer = await self.ask(calls.device_configure(domain, config, devid))
        if answer not in (b"True", b"1"):
            raise XendFailedError(f"xend answers {sxp.show(answer)[:80]!r}", op="device_configure")

    async def _pci_change(self, domain: str, function: PciFunction | str, state: str) -> None:
        function = PciFunction(address=function) if isinstance(function, str) else function
        await self._configure(domain, devices.pci_change_sxp(function, state))

    async def _name_of(self, domid: str) -> str:
        """The name of the domain with this domid; "": there is none any more."""
        try:
            found = await self.get_domain(domid)
        except XendNotFoundError:
            return ""
        if str(found.domid) == domid:
            return found.name
        # Another domain is named as if it were this number.
        return next((each.name for each in await self.domains() if str(each.domid) == domid), "")

    async def _domid_of(self, name: str) -> str:
        if name.isdecimal():
            return name
        found = await self.get_domain(name)
        if found.domid < 0:
            raise InvalidInputError(f"{name} does not run, so it can serve no device", field="backend")
        return str(found.domid)


async def find(usual: tuple[Address, ...] = addresses.USUAL, *, timeout_s: float = http.CONNECT_TIMEOUT_S) -> Address:
    """The first of these addresses at which a xend tells of its host.

    Raises:
        XendUnavailableError: there is none.
    """
    told: list[str] = []
    for each in usual:
        try:
            await XendClient(each, timeout_s=timeout_s).get_node()
        except XendError as error:
            told.append(str(error))
        else:
            return each
    raise XendUnavailableError(f"no xend answers at {addresses.listed(usual)} ({'; '.join(told)})")


def _list(value: Sxp, op: str) -> list[Sxp]:
    if isinstance(value, list):
        return value
    raise XendReplyError(f"not a list: {value[:80]!r}", op=op)


def _text(value: Sxp, op: str) -> bytes:
    if isinstance(value, bytes):
        return value
    if not value:
        return b""
    raise XendReplyError("not a text", op=op)


def _ref(value: Sxp) -> str:
    """The number in `(vbd (dom 1 id 51728))`; "": xend tells none, as of a domain that does not run."""
    told = value[1] if isinstance(value, list) and len(value) > 1 else []
    if isinstance(told, list) and b"id" in told[:-1]:
        ref = sxp.text(told[told.index(b"id") + 1])
        return ref if ref.isdecimal() else ""
    return ""


def _pci_of(attributes: Mapping[str, str]) -> PciFunction:
    rest = dict(attributes)
    address = rest.pop("address", "")
    if not address:
        raise InvalidInputError("which function, such as 0000:03:00.0, is missing", field="address")
    vdevfn = rest.pop("vdevfn", hex(devices.VDEVFN_AUTO))
    try:
        return PciFunction(address=address, vdevfn=int(vdevfn, 16), options=rest)
    except ValueError as error:
        raise InvalidInputError(f"{vdevfn[:20]!r} is no hexadecimal number", field="vdevfn") from error
