"""Making things happen that no protocol asks for: what guests, hardware, Xen and xend itself do of their own accord.

An order is a line of words, the answer a line of JSON. `HELP` lists the orders.
"""

import random
import re
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from leasehold.events import identities
from leasehold.events.errors import InvalidInputError, XendSimError
from leasehold.services.xendsim.hypervisor import CRASHED, PAUSED, REASONS, RUNNING, Host
from leasehold.services.xendsim.state import Device, Domain, PciFunction
from leasehold.services.xendsim.wire import Faults

WORDS_MAX: Final = 16
HELP: Final = {
    "crash DOM": "the guest crashes; what follows is its on_crash",
    "reboot DOM": "the guest reboots by itself: the same uuid, another number",
    "poweroff DOM": "the guest shuts down by itself; also `halt DOM`, and `suspend DOM`, which xend takes no note of",
    "hang DOM": "the guest does not hear what it is asked for; `unhang DOM`",
    "vanish DOM": "it ends right after the next list that names it: the GET that follows finds nothing",
    "kill DOM": "it ends at once, as by `xl destroy` behind xend's back",
    "linger DOM MS": "after its end Xen holds its devices for so long; -1: until `bury DOM`",
    "bury DOM": "Xen lets go of a dying domain",
    "plug ADDRESS [DRIVER]": "a PCI function comes, of this driver (pciback)",
    "unplug ADDRESS": "a PCI function goes",
    "stick UNAME": "the hotplug script of this disk does not answer; `unstick UNAME`",
    "make N [PREFIX]": "N domains start, at once",
    "churn N": "N things happen, by the seed: guests crash, reboot, are paused, renamed, destroyed, created",
    "slow MS": "each reply takes so much longer",
    "silent [N]": "the next N requests (all: -1) hear nothing",
    "cut [N]": "the next N replies end in their middle",
    "down MS": "xend is not there for so long: its sockets are gone",
    "restart MS EMPTY_MS": "as `down`, and when it is back it lists only Domain-0 for EMPTY_MS",
    "timing NAME MS": "how long a thing takes: guest_ms, ended_ms, crash_ms, destroy_ms, gap_ms, dying_ms, …",
    "show": "what there is: domains, dying ones, who has which PCI function",
}


class Stand(Protocol):
    """What orders are given to."""

    host: Host

    @property
    def faults(self) -> Faults:
        """What goes wrong on the wire."""
        ...

    def down(self, for_ms: int, empty_ms: int) -> None:
        """Close the sockets for a while."""
        ...


def act(stand: Stand, words: list[str]) -> object:
    """Do it, at the host's moment; what it answers can be written as JSON.

    Raises:
        InvalidInputError: there is no such order, or it cannot be done.
    """
    if not words or len(words) > WORDS_MAX:
        raise InvalidInputError("an order is a word and what it needs; see `leasehold xend-sim do help`", field="order")
    order = _ORDERS.get(words[0])
    if words[0] == "help":
        return HELP
    if order is None:
        raise InvalidInputError(f"{words[0][:40]!r} is none of {', '.join(_ORDERS)}", field="order")
    try:
        answer = order(stand, *words[1:])
    except TypeError as error:
        usage = next((each for each in HELP if each.split()[0] == words[0]), words[0])
        raise InvalidInputError(f"`{usage}` is how it is said", field="order") from error
    except XendSimError as error:
        said = f"there is no domain {str(error)!r}" if error.kind == "missing" else str(error)
        raise InvalidInputError(said, field=words[0]) from error
    stand.host.changes += 1
    return answer if answer is not None else "done"


def _guest(stand: Stand, name: str) -> Domain:
    domain = stand.host.find(name)
    if domain.domid <= 0:
        raise InvalidInputError(f"{name} does not run", field="domain")
    return domain


def _ask(reason: str) -> Callable[..., object]:
    def ask(stand: Stand, name: str) -> None:
        domain = _guest(stand, name)
        if domain.crashed or domain.ended:
            raise InvalidInputError(f"{name} does not run any more", field="domain")
        deaf, domain.deaf = domain.deaf, False
        stand.host.ask(domain, reason)
        domain.deaf = deaf
        domain.due_ms = domain.due_ms or stand.host.now_ms

    return ask


def _crash(stand: Stand, name: str) -> None:
    stand.host.crash(_guest(stand, name))


def _deafen(stand: Stand, name: str, *, deaf: bool) -> None:
    _guest(stand, name).deaf = deaf


def _vanish(stand: Stand, name: str) -> None:
    _guest(stand, name).vanishing = True


def _kill(stand: Stand, name: str) -> None:
    stand.host.destroy(_guest(stand, name))


def _linger(stand: Stand, name: str, ms: str) -> None:
    _guest(stand, name).dying_ms = -1 if ms == "-1" else _number(ms)


def _bury(stand: Stand, name: str) -> None:
    state = stand.host.state
    found = [each for each in state.dying if name in {each.name, each.uuid, str(each.domid)}]
    if not found:
        raise InvalidInputError(f"no dying domain is called {name[:80]!r}", field="domain")
    state.dying = [each for each in state.dying if each not in found]


def _plug(stand: Stand, address: str, driver: str = "pciback") -> None:
    stand.host.state.pci[str(identities.parse_pci_address(address))] = driver


def _unplug(stand: Stand, address: str) -> None:
    if stand.host.state.pci.pop(str(identities.parse_pci_address(address)), None) is None:
        raise InvalidInputError(f"there is no {address}", field="address")


def _stick(stand: Stand, uname: str) -> None:
    stand.host.state.stuck.append(uname)


def _unstick(stand: Stand, uname: str) -> None:
    stand.host.state.stuck = [each for each in stand.host.state.stuck if each != uname]


def make(host: Host, count: int, prefix: str = "guest") -> None:
    """Start domains, each with a disk and a network card."""
    taken = {each.name for each in host.state.domains}
    numbers = (each for each in range(1, len(taken) + count + 1) if f"{prefix}{each}" not in taken)
    for number in [next(numbers) for _ in range(count)]:
        name = f"{prefix}{number}"
        domain = Domain(uuid=host.make.uuid(), name=name, vcpus=1, memory_mib=256, maxmem_mib=512)
        domain.image = {"kernel": "/boot/vmlinuz-pv", "args": "root=/dev/xvda1 ro"}
        disk = {"dev": "xvda1", "uname": f"phy:/dev/vg0/{name}", "mode": "w", "bootable": "1"}
        card = {"bridge": "xenbr0", "mac": host.make.mac()}
        domain.devices = [
            Device(kind="vif", uuid=host.make.uuid(), attributes=card),
            Device(kind="vbd", uuid=host.make.uuid(), devid=51_713, attributes=disk),
        ]
        host.create(domain)
        host.unpause(domain)


def _make(stand: Stand, count: str, prefix: str = "guest") -> None:
    make(stand.host, _number(count), prefix)


def _churn(stand: Stand, count: str) -> list[str]:
    host = stand.host
    host.state.serial += 1
    chance = random.Random(f"{host.state.seed}/{host.state.serial}")  # noqa: S311 - no secret
    return [_happen(host, chance) for _ in range(_number(count))]


def _happen(host: Host, chance: random.Random) -> str:
    guests = [each for each in host.shown() if each.domid > 0]
    domain = chance.choice(guests) if guests else None
    what = chance.choice(("crash", "reboot", "pause", "unpause", "rename", "destroy", "create", "attach", "detach"))
    if domain is None or what == "create":
        make(host, 1, "churn")
        return f"create {host.state.domains[-1].name}"
    status = host.status(domain)
    functions = [each for each in domain.devices if each.kind == "pci"]
    free = list(host.assignable())
    match what:
        case "crash" if status != CRASHED:
            host.crash(domain)
        case "reboot" if status == RUNNING:
            host.ask(domain, "reboot")
        case "pause" if status == RUNNING:
            host.pause(domain)
        case "unpause" if status == PAUSED:
            host.unpause(domain)
        case "rename":
            domain.name = f"renamed{host.state.serial}-{domain.domid}"
        case "attach" if free and not functions:
            _attach(host, domain, chance.choice(free))
        case "detach" if functions:
            domain.devices = [each for each in domain.devices if each.kind != "pci"]
        case "destroy":
            host.destroy(domain)
        case _:
            return f"nothing to {domain.name}"
    host.changes += 1
    return f"{what} {domain.name}"


def _attach(host: Host, domain: Domain, address: str) -> None:
    domain_, bus, slot, func = (f"0x{each}" for each in re.split("[:.]", address))
    function = PciFunction(domain=domain_, bus=bus, slot=slot, func=func, key=address[5:], uuid=host.make.uuid())
    device = Device(kind="pci", uuid=host.make.uuid(), functions=[function])
    domain.devices.append(device)
    host.bring_up(domain, device)


def _slow(stand: Stand, ms: str) -> None:
    stand.faults.slow_ms = _number(ms)


def _silent(stand: Stand, count: str = "1") -> None:
    stand.faults.silent = -1 if count == "-1" else _number(count)


def _cut(stand: Stand, count: str = "1") -> None:
    stand.faults.cut = -1 if count == "-1" else _number(count)


def _down(stand: Stand, ms: str) -> None:
    stand.down(_number(ms), 0)


def _restart(stand: Stand, ms: str, empty_ms: str = "0") -> None:
    stand.down(_number(ms), _number(empty_ms))


def _timing(stand: Stand, name: str, ms: str) -> None:
    timing = stand.host.state.timing
    if name not in timing.__struct_fields__:
        raise InvalidInputError(f"{name[:40]!r} is none of {', '.join(timing.__struct_fields__)}", field="timing")
    setattr(timing, name, _number(ms))


def _show(stand: Stand) -> object:
    host = stand.host
    assigned = host.assigned()
    return {
        "domains": [
            {
                "name": each.name,
                "uuid": each.uuid,
                "domid": each.domid,
                "status": host.status(each),
                "managed": each.managed,
                "next": each.doing,
                "pci": [function.address for device in each.devices for function in device.functions],
            }
            for each in host.state.domains
        ],
        "dying": [msgspec.to_builtins(each) for each in host.state.dying],
        "pci": {each: {"driver": driver, "domid": assigned.get(each, -1)} for each, driver in host.state.pci.items()},
        "faults": msgspec.to_builtins(stand.faults),
        "timing": msgspec.to_builtins(host.state.timing),
    }


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 86_400_000:
        raise InvalidInputError(f"{text[:40]!r} is no number from 0 to 86400000", field="number")
    return int(text)


_ORDERS: Final[dict[str, Callable[..., object]]] = {
    "crash": _crash,
    **{reason: _ask(reason) for reason in REASONS if reason != "crash"},
    "hang": lambda stand, name: _deafen(stand, name, deaf=True),
    "unhang": lambda stand, name: _deafen(stand, name, deaf=False),
    "vanish": _vanish,
    "kill": _kill,
    "linger": _linger,
    "bury": _bury,
    "plug": _plug,
    "unplug": _unplug,
    "stick": _stick,
    "unstick": _unstick,
    "make": _make,
    "churn": _churn,
    "slow": _slow,
    "silent": _silent,
    "cut": _cut,
    "down": _down,
    "restart": _restart,
    "timing": _timing,
    "show": _show,
}
