"""What xend can be asked, each in both of its wire forms. Nothing is sent here, and nothing read.

A domain is named by its name, domid or uuid. xend looks for them in this order, so a domain whose name is `5` hides
that with domid 5; a uuid is never mistaken.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple
from urllib.parse import quote, urlencode

from leasehold.events import limits
from leasehold.events.errors import InvalidInputError, SxpError, XendUnsupportedError
from leasehold.services.xend import devices, model, rpc, sxp
from leasehold.services.xend.http import Request
from leasehold.services.xend.rpc import Param
from leasehold.services.xend.sxp import Printable

DOMAINS: Final = "/xend/domain"
NODE: Final = "/xend/node"
_NAME_CHARS_MAX: Final = 255
_PATH_CHARS_MAX: Final = 4_096
_QUESTIONS: Final = ("devices", "pci_assignable")
"""What only asks, besides all that is a GET."""


class Call(NamedTuple):
    """One thing that xend can be asked."""

    op: str
    """What it is called, in errors."""
    method: str = ""
    """GET or POST; "": not to be had over HTTP."""
    path: str = ""
    fields: tuple[tuple[str, str | bytes], ...] = ()
    """Of the query or the form."""
    rpc: str = ""
    """The method of XML-RPC; "": not to be had there."""
    params: tuple[Param, ...] = ()
    is_long: bool = False
    """It may take minutes: xend waits for a guest, for hotplug scripts, or for a disk."""
    is_text: bool = False
    """The answer is a log."""

    @property
    def only_asks(self) -> bool:
        """Nothing changes by it."""
        return self.method == "GET" or self.op in _QUESTIONS


def http_request(call: Call) -> Request:
    """A call as HTTP.

    Raises:
        XendUnsupportedError: it cannot be had in this way.
        InvalidInputError: it is longer than xend takes.
    """
    if not call.method:
        raise XendUnsupportedError("xend offers this over XML-RPC only", op=call.op)
    try:
        form = urlencode(call.fields)
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"{str(error.object)[:80]!r} is no Unicode text", field="text") from error
    if call.method == "GET":
        return Request(call.op, "GET", f"{call.path}?{form}" if form else call.path)
    if len(form) > limits.XEND_POST_BYTES_MAX:
        raise InvalidInputError(
            f"{len(form)} bytes in the encoding of forms; xend takes {limits.XEND_POST_BYTES_MAX} over HTTP",
            field=call.fields[-1][0],
        )
    return Request(call.op, "POST", call.path, form.encode(), only_asks=call.only_asks)


def rpc_request(call: Call) -> Request:
    """A call as XML-RPC.

    Raises:
        XendUnsupportedError: it cannot be had in this way.
        InvalidInputError: XML cannot hold its text.
    """
    if not call.rpc:
        raise XendUnsupportedError("xend offers this over HTTP only", op=call.op)
    return rpc.request_of(call.rpc, call.params)._replace(op=call.op, only_asks=call.only_asks)


# --- domains --------------------------------------------------------------------------------------------------------


def names(state: str) -> Call:
    """The names of the domains in a state; of the running ones also where xend knows of no states (3.0)."""
    if state not in model.STATES:
        raise InvalidInputError(f"{state[:40]!r} is none of {', '.join(model.STATES)}", field="state")
    if state == "running":
        return Call("get_domains", "GET", DOMAINS, (), "xend.domains", (False,))
    fields = (("state", state),)
    return Call("get_domains", "GET", DOMAINS, fields, "xend.domains_with_state", (False, state, False))


def described(state: str) -> Call:
    """Descriptions of domains in one answer; HTTP has this of the running ones only, whatever state is asked for."""
    fields = (("detail", "1"),)
    return Call("domains", "GET", DOMAINS, fields, "xend.domains_with_state", (True, state, True))


def domain(ref: str) -> Call:
    """One domain's description."""
    return Call("get_domain", "GET", _at(ref), (), "xend.domain", (ref, 1))


def create(config: Printable) -> Call:
    """Make a domain, which is paused then."""
    return _with_config("create", DOMAINS, "create", config, rpc="xend.domain.create")


def define(config: Printable) -> Call:
    """Make xend know a domain, without starting it."""
    return _with_config("define", DOMAINS, "new", config, rpc="xend.domain.new")


def restore(path: str) -> Call:
    """Bring a domain back from a file on the host."""
    fields = (("op", "restore"), ("file", _path(path)))
    return Call("restore", "POST", DOMAINS, fields, "xend.domain.restore", (path,), is_long=True)


def simple(ref: str, op: str, *, is_long: bool = False) -> Call:
    """What needs to be told nothing but the domain: pause, unpause, destroy, delete, start, reset."""
    # Over XML-RPC a start would leave it paused; over HTTP it never does.
    params: tuple[Param, ...] = (ref, False) if op == "start" else (ref,)
    return Call(op, "POST", _at(ref), (("op", op),), f"xend.domain.{op}", params, is_long=is_long)


def wait_for_devices(ref: str) -> Call:
    """Wait until all devices are connected, or take those away that are not."""
    fields = (("op", "wait_for_devices"),)
    return Call("wait_for_devices", "POST", _at(ref), fields, "xend.domain.waitForDevices", (ref,), is_long=True)


def rename(ref: str, name: str) -> Call:
    """Give a domain another name."""
    fields = (("op", "rename"), ("name", model.check_name(name)))
    return Call("rename", "POST", _at(ref), fields, "xend.domain.setName", (ref, name))


def sysrq(ref: str, key: str) -> Call:
    """Press a key of SysRq. xend wants the number of the character, whatever libxend says."""
    if len(key) != 1 or not key.isascii() or not key.isalnum():
        raise InvalidInputError(f"{key[:20]!r} is not one letter or digit", field="key")
    fields = (("op", "sysrq"), ("key", str(ord(key))))
    return Call("sysrq", "POST", _at(ref), fields, "xend.domain.send_sysrq", (ref, ord(key)))


def shutdown(ref: str, reason: str) -> Call:
    """Ask a domain to end itself."""
    if reason not in model.SHUTDOWN_REASONS:
        raise InvalidInputError(f"{reason[:40]!r} is none of {', '.join(model.SHUTDOWN_REASONS)}", field="reason")
    op = "reboot" if reason == "reboot" else "shutdown"
    fields = (("op", "shutdown"), ("reason", reason))
    return Call(op, "POST", _at(ref), fields, "xend.domain.shutdown", (ref, reason))


def save(ref: str, path: str) -> Call:
    """Write a domain to a file on the host, and end it."""
    fields = (("op", "save"), ("file", _path(path)))
    return Call("save", "POST", _at(ref), fields, "xend.domain.save", (ref, path), is_long=True)


def dump(ref: str, path: str, *, live: bool, crash: bool, reset: bool) -> Call:
    """Write a domain's memory to a file on the host."""
    flags = {"live": live, "crash": crash, "reset": reset}
    fields = (("op", "dump"), ("file", _path(path)), *((name, str(int(on))) for name, on in flags.items()))
    return Call("dump", "POST", _at(ref), fields, "xend.domain.dump", (ref, path, live, crash, reset), is_long=True)


def set_max_memory(ref: str, memory_bytes: int) -> Call:
    """How much memory a domain may have."""
    memory = model.mib(memory_bytes, "memory_bytes")
    fields = (("op", "maxmem_set"), ("memory", str(memory)))
    return Call("set_max_memory", "POST", _at(ref), fields, "xend.domain.maxmem_set", (ref, memory))


def set_memory(ref: str, memory_bytes: int) -> Call:
    """How much memory a domain is to have."""
    target = model.mib(memory_bytes, "memory_bytes")
    fields = (("op", "mem_target_set"), ("target", str(target)))
    return Call("set_memory", "POST", _at(ref), fields, "xend.domain.setMemoryTarget", (ref, target))


def set_vcpus(ref: str, vcpus: int) -> Call:
    """How many virtual CPUs a domain is to have online."""
    fields = (("op", "set_vcpus"), ("vcpus", str(model.check_vcpus(vcpus))))
    return Call("set_vcpus", "POST", _at(ref), fields, "xend.domain.setVCpuCount", (ref, vcpus))


def vcpus(ref: str) -> Call:
    """What a domain's virtual CPUs do."""
    fields = (("op", "vcpuinfo"),)
    return Call("vcpus", "GET", _at(ref), fields, "xend.domain.getVCPUInfo", (ref,))


# --- devices --------------------------------------------------------------------------------------------------------


def devices_of(ref: str, kind: str) -> Call:
    """What is shown of a domain's devices of one type."""
    kind = devices.type_of(kind)
    fields = (("op", "devices"), ("type", kind))
    return Call("devices", "POST", _at(ref), fields, "xend.domain.getDeviceSxprs", (ref, kind))


def device_create(ref: str, config: Printable) -> Call:
    """Give a domain a device, and wait for it."""
    return _with_config("device_create", _at(ref), "device_create", config, rpc="xend.domain.device_create", ref=(ref,))


def device_configure(ref: str, config: Printable, devid: str = "0") -> Call:
    """Change a device; for those of PCI that is how functions come and go, and `devid` means nothing."""
    call = _with_config(
        "device_configure", _at(ref), "device_configure", config, rpc="xend.domain.device_configure", ref=(ref,)
    )
    # The form's field is required in any case.
    return call._replace(fields=(call.fields[0], ("dev", devid), call.fields[1]), params=(*call.params, devid))


def device_destroy(ref: str, kind: str, dev: str, *, force: bool) -> Call:
    """Take a device from a domain, and from its configuration where xend can do that."""
    kind = devices.type_of(kind)
    if not 0 < len(dev) <= _NAME_CHARS_MAX:
        raise InvalidInputError("the number or name of the device is missing", field="dev")
    forget = int(kind in devices.FORGOTTEN)
    # All four are required since 3.3, and the last two overlooked before.
    fields = (("op", "device_destroy"), ("type", kind), ("dev", dev), ("force", str(int(force))))
    return Call(
        "device_destroy",
        "POST",
        _at(ref),
        (*fields, ("rm_cfg", str(forget))),
        "xend.domain.destroyDevice",
        (ref, kind, dev, int(force), forget),
        is_long=True,
    )


def usb_hand_on(ref: str, device: str, op: str) -> Call:
    """Have QEMU hand on a USB device, or no longer (`usb_add`, `usb_del`). Over HTTP xend has a bug there and hangs."""
    return Call(op, rpc=f"xend.domain.{op}", params=(ref, device))


# --- the host -------------------------------------------------------------------------------------------------------


def node() -> Call:
    """The host."""
    return Call("get_node", "GET", NODE, (), "xend.node.info")


def node_op(name: str, op: str) -> Call:
    """Shut the host down, or restart it. In xend 4.4 nothing stands behind either."""
    return Call(name, "POST", NODE, (("op", op),))


def pci_assignable() -> Call:
    """PCI functions that may be given to domains and are not."""
    return Call("pci_assignable", rpc="xend.node.pciinfo")


def dmesg() -> Call:
    """The hypervisor's messages."""
    return Call("dmesg", "GET", f"{NODE}/dmesg", (), "xend.node.dmesg.info", is_text=True)


def dmesg_clear() -> Call:
    """Forget the hypervisor's messages."""
    return Call("dmesg_clear", "POST", f"{NODE}/dmesg", (("op", "clear"),), "xend.node.dmesg.clear")


def log() -> Call:
    """xend's own log."""
    return Call("log", "GET", f"{NODE}/log", (), "xend.node.log", is_text=True)


# --- parts ----------------------------------------------------------------------------------------------------------


def _with_config(name: str, path: str, op: str, config: Printable, *, rpc: str, ref: tuple[str, ...] = ()) -> Call:
    try:
        written = sxp.write(config)
    except SxpError as error:
        raise InvalidInputError(str(error), field="config") from error
    fields: Sequence[tuple[str, str | bytes]] = (("op", op), ("config", written))
    return Call(name, "POST", path, tuple(fields), rpc, (*ref, _param(written)), is_long=True)


def _param(written: bytes) -> Param:
    """As a reader of SXP would have it: lists, and text."""
    return rpc.plain(sxp.read(written))


def _at(ref: str) -> str:
    """Where a domain is.

    Raises:
        InvalidInputError: this names none; an empty name would name all.
    """
    if not ref or len(ref) > _NAME_CHARS_MAX or not ref.isprintable():
        raise InvalidInputError(f"{ref[:80]!r} is no name, domid or uuid of a domain", field="domain")
    return f"{DOMAINS}/{quote(ref, safe='')}"


def _path(path: str) -> str:
    if not path.startswith("/") or len(path) > _PATH_CHARS_MAX or "\0" in path:
        raise InvalidInputError(f"{path[:80]!r} is no absolute path; it is the host's", field="file")
    return path
