"""The legacy `xend.*` methods of XML-RPC, which is the one interface that is on by default."""

import xmlrpc.client
from collections.abc import Callable
from typing import Any, Final
from xml.parsers.expat import ExpatError
from xml.sax.saxutils import escape

import msgspec

from leasehold.events.errors import XendSimError
from leasehold.services.xendsim.calls import Stuck, Xend
from leasehold.services.xendsim.configuring import number
from leasehold.services.xendsim.state import Domain, Parsed, Tree

_INTERNAL, _GENERIC, _NO_DOMAIN = 1, 2, 3
_INT_MAX: Final = (1 << 31) - 1
Value = Any
"""What XML-RPC can say: text, numbers, booleans, lists, structs."""


class RpcReply(msgspec.Struct, kw_only=True):
    """The answer's XML; or that it is known only after `after_ms`, from `then`."""

    body: bytes = b""
    after_ms: int = 0
    then: Callable[[], bytes] | None = None


def answer(xend: Xend, body: bytes) -> RpcReply:
    """What xend answers to a call."""
    try:
        params, method = xmlrpc.client.loads(body.decode("utf-8", "replace"))
    except (ExpatError, xmlrpc.client.Error, ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        return RpcReply(body=_fault(_INTERNAL, str(error)))
    function = METHODS.get(method or "")
    if function is None:
        return RpcReply(body=_fault(_INTERNAL, f'method "{method}" is not supported'))
    try:
        value = function(xend, *params)
    except XendSimError as error:
        return RpcReply(body=_failed(error))
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        # Too many arguments, or others than these, or too deep in one another: whatever Python says is told, as there.
        return RpcReply(body=_fault(_INTERNAL, str(error)))
    if isinstance(value, Stuck):
        stuck = value
        return RpcReply(after_ms=stuck.after_ms, then=lambda: _failed(xend.gave_up(stuck)))
    return RpcReply(body=_said(value))


def _said(value: Value) -> bytes:
    said = f"<?xml version='1.0'?>\n<methodResponse>\n<params>\n<param>\n{written(value)}</param>\n</params>\n"
    return f"{said}</methodResponse>\n".encode("utf-8", "replace")


def written(value: Value) -> str:
    """A value as `xmlrpc.client` writes it, in a third of the time; None and what does not fit into an int as text."""
    match value:
        case str():
            inner = f"<string>{escape(value)}</string>"
        case bool():
            inner = f"<boolean>{int(value)}</boolean>"
        case int() if -_INT_MAX <= value <= _INT_MAX:
            inner = f"<int>{value}</int>"
        case float():
            inner = f"<double>{value!r}</double>"
        case dict():
            members = [
                f"<member>\n<name>{escape(key)}</name>\n{written(each)}</member>\n" for key, each in value.items()
            ]
            inner = f"<struct>\n{''.join(members)}</struct>"
        case list() | tuple():
            inner = f"<array><data>\n{''.join(map(written, value))}</data></array>"
        case _:
            inner = f"<string>{'' if value is None else value}</string>"
    return f"<value>{inner}</value>\n"


def _failed(error: XendSimError) -> bytes:
    codes = {"missing": _NO_DOMAIN, "python": _INTERNAL}
    return _fault(codes.get(error.kind, _GENERIC), str(error))


def _fault(code: int, said: str) -> bytes:
    return xmlrpc.client.dumps(xmlrpc.client.Fault(code, said)).encode("utf-8", "xmlcharrefreplace")


def _parsed(value: Value) -> Parsed:
    """A configuration, which comes as lists of lists; numbers in it as text, as elsewhere."""
    return [_parsed(each) for each in value] if isinstance(value, list | tuple) else str(value)


def _find(xend: Xend, name: Value) -> Domain:
    return xend.host.find(str(name))


def _shown(xend: Xend, domain: Domain, full: Value) -> Tree:
    tree = xend.printer.domain(domain, devices=bool(full), as_configured=True)
    return [each for each in tree if not isinstance(each, list) or each[0] != "vcpu_avail"]


def _domain(xend: Xend, name: Value, full: Value = 0) -> Value:
    return _shown(xend, _find(xend, name), full)


def _domains(xend: Xend, detail: Value = 1, full: Value = 0) -> Value:
    return _domains_with_state(xend, detail, "running", full)


def _domains_with_state(xend: Xend, detail: Value, state: Value, full: Value) -> Value:
    listed = xend.listed(str(state))
    shown = [_shown(xend, each, full) for each in listed] if detail else [each.name for each in listed]
    xend.listing_done(listed)
    return shown


def _list(xend: Xend, detail: Value = 0) -> Value:
    return _domains(xend, detail, full=True)


def _on(work: Callable[..., Value]) -> Callable[..., Value]:
    """A method whose first argument names a domain."""

    def call(xend: Xend, name: Value, *rest: Value) -> Value:
        return work(xend, _find(xend, name), *rest)

    return call


def _create(xend: Xend, config: Value) -> Value:
    return _shown(xend, xend.create(_parsed(config)), full=True)


def _restore(xend: Xend, source: Value, paused: Value = 0) -> Value:
    return _shown(xend, xend.restore(str(source), paused=bool(paused)), full=True)


def _get_devices(xend: Xend, domain: Domain, kind: Value) -> Value:
    xend.check_kind(str(kind))
    return xend.printer.functions(domain) if kind == "pci" else xend.devices(domain, str(kind))


def _destroy_device(xend: Xend, domain: Domain, kind: Value, name: Value, *flags: Value) -> Value:
    keep = len(flags) > 1 and not flags[1]
    xend.device_destroy(domain, str(kind), str(name), keep=keep)


def _clear(xend: Xend) -> None:
    xend.host.state.dmesg = ""
    xend.host.changes += 1


_DOMAIN_METHODS: Final[dict[str, Callable[..., Value]]] = {
    "pause": lambda xend, domain, *_: xend.pause(domain),
    "unpause": lambda xend, domain: xend.unpause(domain),
    "destroy": lambda xend, domain: xend.destroy(domain),
    "start": lambda xend, domain, paused=True: xend.start(domain, paused=bool(paused)),
    "delete": lambda xend, domain: xend.delete(domain),
    "suspend": lambda xend, domain: xend.suspend(domain),
    "resume": lambda xend, domain, paused=False: xend.resume(domain, paused=bool(paused)),
    "reset": lambda xend, domain: xend.reset(domain),
    "save": lambda xend, domain, path, _checkpoint=False, force=False: xend.save(domain, str(path), force=bool(force)),
    "dump": lambda xend, domain, _path=None, _live=False, crash=False, reset=False: xend.dump(
        domain, crash=bool(crash), reset=bool(reset)
    ),
    "migrate": lambda xend, domain, *_: xend.migrate(domain),
    "usb_add": lambda xend, domain, _device: xend.usb(domain),
    "usb_del": lambda xend, domain, _device: xend.usb(domain),
    "maxmem_set": lambda xend, domain, mib: xend.set_max_memory(domain, number(mib)),
    "setMemoryTarget": lambda xend, domain, mib: xend.set_memory(domain, number(mib)),
    "setName": lambda xend, domain, name: xend.rename(domain, str(name)),
    "setVCpuCount": lambda xend, domain, vcpus: xend.set_vcpus(domain, number(vcpus)),
    "shutdown": lambda xend, domain, reason: xend.shutdown(domain, str(reason)),
    "send_sysrq": lambda xend, domain, key: xend.sysrq(domain, number(key)),
    "getVCPUInfo": lambda xend, domain: xend.printer.vcpus(domain),
    "waitForDevices": lambda xend, domain: xend.wait(domain),
    "getDeviceSxprs": _get_devices,
    "device_create": lambda xend, domain, config: xend.device_create(domain, _parsed(config)),
    "device_configure": lambda xend, domain, config, name=0: xend.device_configure(domain, _parsed(config), str(name)),
    "destroyDevice": _destroy_device,
    "sched_credit_get": lambda _xend, domain: {"cap": domain.cap, "weight": domain.weight},
}
METHODS: Final[dict[str, Callable[..., Value]]] = {
    **{f"xend.domain.{name}": _on(work) for name, work in _DOMAIN_METHODS.items()},
    "xend.domain": _domain,
    "xend.domains": _domains,
    "xend.domains_with_state": _domains_with_state,
    "xend.domain.list": _list,
    "xend.domain.new": lambda xend, config: xend.new(_parsed(config)),
    "xend.domain.create": _create,
    "xend.domain.restore": _restore,
    "xend.node.info": lambda xend: xend.printer.node(),
    "xend.node.pciinfo": lambda xend: xend.printer.pciinfo(),
    "xend.node.log": lambda xend: "\n".join([*xend.host.state.log, ""]),
    "xend.node.dmesg.info": lambda xend: xend.host.state.dmesg,
    "xend.node.dmesg.clear": _clear,
    "system.listMethods": lambda _xend: sorted(METHODS),
}
