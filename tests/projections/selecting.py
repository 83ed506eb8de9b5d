"""Devices for tests of selectors, and selectors by chance with what they mean, said a second time."""

import operator
import random
from collections.abc import Callable
from typing import Any, Final

from leasehold.events.capabilities import Mdev, Net, Pci, PciLink, Storage, UsbDevice
from leasehold.events.devices import DeviceDescription
from leasehold.events.identities import DeviceId, DeviceKey, HostName, device_id
from leasehold.projections import attributes
from leasehold.projections.attributes import FIELDS, NUMBER, TEXT, TRUTH, Value
from leasehold.projections.rows import DeviceState, HostState
from leasehold.projections.state import State

NIC: Final = "pci/0000:03:00.0"
VF: Final = "pci/0000:03:10.0"
GPU: Final = "pci/0000:41:00.0"
MDEV: Final = f"{GPU}/mdev/c0ffee00-0000-4000-8000-000000000001"
DISK: Final = "pci/0000:05:00.0"
STICK: Final = "usb/0000:00:14.0/2-1.4"


def _described(key: str, kind: str, **fields: Any) -> DeviceDescription:
    return DeviceDescription(**{"key": DeviceKey(key), "name": key.replace("/", "_"), "kind": kind, **fields})


def descriptions() -> list[DeviceDescription]:
    """One device of each sort, with what stands for it."""
    nic = Pci(
        subsystem_vendor_id="15D9", revision=2, virtual_functions=1, virtual_functions_max=64, is_express=True,
        link_now=PciLink(speed_mts=8000, width=4), link_max=PciLink(speed_mts=8000, width=8), resets=("flr", "bus"),
    )  # fmt: skip
    up = Net(interface="eth0", address="02:00:00:00:00:01", link_state="up", link_speed_mbps=1000)
    stick = UsbDevice(device_class=8, speed_kbps=480_000, usb_version="2.10")
    return [
        _described(NIC, "pci", sysfs_path="/sys/devices/pci0000:00/0000:00:1c.0/0000:03:00.0", driver="igb",
                   vendor_id="8086", product_id="10c9", vendor_name="Intel Corporation", pci_class=0x020000,
                   numa_node=0, iommu_group=12, capability=nic, attributes={"rack": "b4"}),
        _described(f"{NIC}/net/0", "net", parent=NIC, driver="igb", capability=up),
        _described(f"{NIC}/net/1", "net", parent=NIC, capability=Net(interface="eth1", link_state="down")),
        _described(VF, "pci", sysfs_path="/sys/devices/pci0000:00/0000:00:1c.0/0000:03:10.0", vendor_id="8086",
                   product_id="10ca", pci_class=0x020000, numa_node=0, physical_function=NIC),
        _described(GPU, "pci", sysfs_path="/sys/devices/pci0000:40/0000:40:01.0/0000:41:00.0", driver="vfio-pci",
                   vendor_id="10DE", product_id="20B0", pci_class=0x030200, numa_node=1, serial="A1"),
        _described(MDEV, "mdev", parent=GPU, physical_function=GPU,
                   capability=Mdev(uuid="c0ffee00-0000-4000-8000-000000000001", mdev_type="nvidia-63")),
        _described(DISK, "pci", sysfs_path="/sys/devices/pci0000:00/0000:05:00.0", driver="nvme", vendor_id="144d",
                   product_id="a808", pci_class=0x010802),
        _described(f"{DISK}/block/0", "block", parent=DISK, serial="S4",
                   capability=Storage(block="/dev/nvme0n1", model="SSD 970", size_bytes=10**12)),
        _described(STICK, "usb_device", sysfs_path="/sys/devices/pci0000:00/0000:00:14.0/usb2/2-1/2-1.4",
                   vendor_id="0403", product_id="6001", capability=stick),
    ]  # fmt: skip


def world(*hosts: str) -> State:
    """A state with these devices on each host."""
    state = State()
    for host in hosts or ("h1",):
        state.put_host(HostName(host), HostState(mode="watched"))
        for description in descriptions():
            add(state, HostName(host), description)
    return state


def add(state: State, host: HostName, description: DeviceDescription) -> DeviceId:
    """Let a device be there."""
    device = device_id(host, description.key)
    state.put_device(device, DeviceState(host=host, description=description, serial=description.serial))
    return device


# --- selectors by chance ------------------------------------------------------------------------------------------

Means = Callable[[dict[str, Value], dict[str, Any]], Any]
"""What a part of a selector is, given the attributes of a device and the variables around it."""
TEXTS: Final = ("8086", "10de", "0200", "0302", "h1", "h2", "pci", "igb", "eth0", "", "up", 'a"b\\c\n', "ä€😀", "\x00")
NARROWING: Final = {
    "id": (f"h1/{NIC}", f"h2/{GPU}"),
    "host": ("h1", "h2"),
    "key": (NIC, STICK),
    "vendor": ("8086", "10de", ""),
    "product": ("10c9", "20b0", ""),
    "pci.class": ("0200", "0302", ""),
    "kind": ("pci", "mdev"),
    "pci.address": ("0000:03:00.0", "0000:41:00.0", ""),
}
"""Attributes that are certain when they are compared with texts, and some of these."""
COMPARED: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class UnsayableError(Exception):
    """A number is not there, or cannot be reckoned."""


class Chance:
    """Makes selectors, each with its meaning in plain Python. All of it is sayable, but for missing numbers."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._scope: dict[str, dict[str, str]] = {}

    def truth(self, depth: int) -> tuple[str, Means]:
        """Something that is true or not."""
        makers = [self._compared_texts, self._compared_numbers, self._in, self._flag, self._has, self._parts]
        if depth > 0:
            makers += [self._joined, self._joined, self._joined, self._not, self._choice]
            if len(self._scope) < 2:
                makers.append(self._loop)
        return self._random.choice(makers)(depth - 1)

    def certain(self) -> str:
        """Something that narrows, alone or beside something else."""
        name, values = self._random.choice(list(NARROWING.items()))
        shown = [literal(value, self._random) for value in self._random.sample(values, self._random.randint(1, 2))]
        text = f"device.{name} in [{', '.join(shown)}]" if len(shown) > 1 else f"{shown[0]} == device.{name}"
        match self._random.randrange(4):
            case 0:
                return text
            case 1:
                return f"{text} && {self.certain()}"
            case 2:
                return f"{text} || ({self.certain()})"
            case _:
                return f"{text} && ({self.truth(1)[0]})"

    def _attribute(self, type_name: str) -> tuple[str, Means]:
        inner = [
            (f"{variable}.{name}", _entry(variable, name))
            for variable, fields in self._scope.items()
            for name, each in fields.items()
            if each == type_name
        ]
        if inner and self._random.random() < 0.6:
            return self._random.choice(inner)
        names = [each.name for each in attributes.BY_NAME.values() if each.type == type_name]
        name = self._random.choice(names)
        return f"device.{name}", lambda device, _scope: device[name]

    def _text(self) -> tuple[str, Means]:
        if self._random.random() < 0.5:
            return self._attribute(TEXT)
        value = self._random.choice(TEXTS)
        return literal(value, self._random), lambda _device, _scope: value

    def _number(self, depth: int) -> tuple[str, Means]:
        if depth > 0 and self._random.random() < 0.3:
            sign, reckon = self._random.choice([("+", operator.add), ("-", operator.sub), ("*", operator.mul)])
            (left, left_means), (right, right_means) = self._number(depth - 1), self._number(depth - 1)
            return f"({left} {sign} {right})", _both(reckon, left_means, right_means)
        if self._random.random() < 0.5:
            text, means = self._attribute(NUMBER)
            return text, lambda device, scope: _there(means(device, scope))
        value = self._random.choice([0, 1, 2, 12, 1000, -1, 8000])
        return (hex(value) if value == 12 else str(value)), lambda _device, _scope: value

    def _compared_texts(self, _depth: int) -> tuple[str, Means]:
        sign = self._random.choice(list(COMPARED))
        (left, left_means), (right, right_means) = self._attribute(TEXT), self._text()
        return f"{left} {sign} {right}", _both(COMPARED[sign], left_means, right_means)

    def _compared_numbers(self, depth: int) -> tuple[str, Means]:
        sign = self._random.choice(list(COMPARED))
        (left, left_means), (right, right_means) = self._number(depth), self._number(depth)
        return f"{left} {sign} {right}", _both(COMPARED[sign], left_means, right_means)

    def _in(self, _depth: int) -> tuple[str, Means]:
        values = self._random.sample(TEXTS, self._random.randint(1, 4))
        text, means = self._attribute(TEXT)
        items = ", ".join(literal(value, self._random) for value in values)
        return f"{text} in [{items}]", lambda device, scope: means(device, scope) in values

    def _flag(self, _depth: int) -> tuple[str, Means]:
        return self._attribute(TRUTH)

    def _has(self, _depth: int) -> tuple[str, Means]:
        text, means = self._attribute(self._random.choice([TEXT, NUMBER]))
        # In an entry of a list there is no number that is missing: it is 0.
        return (
            f"has({text})",
            lambda device, scope: (
                means(device, scope) not in (None, "") and (text.startswith("device.") or means(device, scope) != 0)
            ),
        )

    def _parts(self, _depth: int) -> tuple[str, Means]:
        name, part = self._random.choice(
            [
                ("startsWith", str.startswith),
                ("endsWith", str.endswith),
                ("contains", str.__contains__),
            ]
        )
        (text, means), (other, other_means) = self._attribute(TEXT), self._text()
        return f"{text}.{name}({other})", _both(part, means, other_means)

    def _joined(self, depth: int) -> tuple[str, Means]:
        sign = self._random.choice(["&&", "||"])
        parts = [self.truth(depth) for _ in range(self._random.randint(2, 3))]
        text = f" {sign} ".join(f"({part})" for part, _ in parts)
        return text, _logic(sign, [means for _, means in parts])

    def _not(self, depth: int) -> tuple[str, Means]:
        text, means = self.truth(depth)
        return f"!({text})", lambda device, scope: not means(device, scope)

    def _choice(self, depth: int) -> tuple[str, Means]:
        (test, test_means), (then, then_means), (other, other_means) = (self.truth(depth) for _ in range(3))
        return (
            f"(({test}) ? ({then}) : ({other}))",
            lambda device, scope: (
                then_means(device, scope) if test_means(device, scope) else other_means(device, scope)
            ),
        )

    def _loop(self, depth: int) -> tuple[str, Means]:
        name, over = self._random.choice([("exists", any), ("all", all)])
        kind, entries = self._random.choice([("nets", attributes.NETS), ("disks", attributes.DISKS)])
        variable = f"x{len(self._scope)}"
        self._scope[variable] = FIELDS[entries]
        body, means = self.truth(min(depth, 1))
        del self._scope[variable]

        def looped(device: dict[str, Value], scope: dict[str, Any]) -> bool:
            rows: Any = device[kind]
            said = []
            for row in rows:
                entry = dict(zip(FIELDS[entries], row, strict=True))
                said.append(means(device, {**scope, variable: entry}))
            return bool(over(said))

        return f"device.{kind}.{name}({variable}, {body})", looped


def _entry(variable: str, name: str) -> Means:
    return lambda _device, scope: scope[variable][name]


def _both(reckon: Callable[[Any, Any], Any], left: Means, right: Means) -> Means:
    return lambda device, scope: reckon(left(device, scope), right(device, scope))


def _there(number: int | None) -> int:
    if number is None:
        raise UnsayableError
    return number


def _logic(sign: str, parts: list[Means]) -> Means:
    """What decides the whole alone does so whatever cannot be said beside it, in whatever order they stand."""
    decides = sign == "||"

    def joined(device: dict[str, Value], scope: dict[str, Any]) -> bool:
        unsayable = False
        for means in parts:
            try:
                if bool(means(device, scope)) == decides:
                    return decides
            except UnsayableError:
                unsayable = True
        if unsayable:
            raise UnsayableError
        return not decides

    return joined


def literal(text: str, chance: random.Random) -> str:
    """A text as somebody may write it."""
    if text.isprintable() and not set(text) & set("'\"\\") and chance.random() < 0.5:
        return chance.choice([f"'{text}'", f'"{text}"', f'r"{text}"', f'"""{text}"""'])
    return '"' + "".join(rf"\U{ord(each):08x}" if chance.random() < 0.5 else _plain(each) for each in text) + '"'


def _plain(each: str) -> str:
    return {"\n": r"\n", '"': r"\"", "\\": "\\\\", "\x00": r"\x00"}.get(each, each)
