"""Xen's tools, imitated: `xl`, `xenstore-ls` and `xenstore-watch` as scripts that print what a small model wrote down.

What they print has the form of the recordings in `tests/data/xl/`, which `test_libxl.py` holds this against.
"""

import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from leasehold.events.identities import parse_pci_address
from leasehold.services.poller.libxl import LibxlSource

MIB: Final = 1024 * 1024
_XL: Final = """#!/bin/sh
here=${0%/*}
if [ -e "$here/hangs" ]; then
    echo $$ > "$here/hangs"
    exec sleep 1000
fi
if [ -e "$here/lost" ]; then
    echo "xencall: error: Could not obtain handle on privileged command interface: No such file or directory" >&2
    exit 1
fi
case "$*" in
    "list -v") exec cat "$here/list-v" ;;
    "list -l") exec cat "$here/list-l" ;;
    pci-assignable-list) exec cat "$here/assignable" ;;
esac
echo "command not implemented" >&2
exit 1
"""
_STORE: Final = """#!/bin/sh
here=${0%/*}
if [ ! -s "$here/backends" ]; then
    echo "xenstore-ls: xs_directory ($2): No such file or directory" >&2
    exit 1
fi
exec cat "$here/backends"
"""
_WATCH: Final = """#!/bin/sh
exec tail -n +1 -s 0.1 -f "${0%/*}/watch"
"""
HEADINGS: Final = (
    "Name                                        ID   Mem VCPUs\tState\tTime(s)   "
    "UUID                            Reason-Code\tSecurity Label\n"
)
DOMAIN_0: Final = (
    "Domain-0                                     0  1024     2     r-----      19.3 "
    "00000000-0000-0000-0000-000000000000        -                -\n"
)
_DOMAIN_0_DETAIL: Final[dict[str, Any]] = {
    "domid": 0,
    "config": {
        "c_info": {"type": "pv", "name": "Domain-0"},
        "b_info": {"max_memkb": 1048576, "target_memkb": 1048575, "type.pv": {}},
    },
}


class FakeDomain:
    """One domain, as libxl has it."""

    def __init__(self, name: str, uuid: str, domid: int, devices: Sequence[str]) -> None:
        self.name = name
        self.uuid = uuid
        self.domid = domid
        self.letters = "-b----"
        self.memory_kib = self.max_memory_kib = 64 * 1024
        self.vcpus = 1
        self.devices = list(devices)
        self.has_config = True
        """Whether `xl list -l` can read its configuration."""

    def row(self) -> str:
        """Its line of `xl list -v`."""
        mib = self.memory_kib // 1024
        start = f"{self.name or '(null)':<40} {self.domid:>5} {mib:>5} {self.vcpus:>5}     {self.letters}  {3.0:>8.1f}"
        return f"{start} {self.uuid} {'-':>8} {'-':>16}\n"

    def detail(self) -> dict[str, Any]:
        """Its entry of `xl list -l`."""
        build = {"max_vcpus": 1, "avail_vcpus": [0], "max_memkb": self.max_memory_kib, "target_memkb": self.memory_kib}
        config: dict[str, Any] = {
            "c_info": {"type": "pv", "name": self.name, "domid": 4294967295, "uuid": self.uuid},
            "b_info": {**build, "sched_params": {"sched": "credit2", "weight": 256, "cap": 0}, "type.pv": {}},
            "on_reboot": "restart",
        }
        words = [word.partition("/") for word in self.devices]
        if pci := [_pci_config(name) for kind, _, name in words if kind == "pci"]:
            config["pcidevs"] = pci
        if usb := [_usb_config(number, name) for number, (kind, _, name) in enumerate(words, 1) if kind != "pci"]:
            config["usbdevs"] = usb
        return {"domid": self.domid, "config": config}


def _pci_config(name: str) -> dict[str, object]:
    """libxl leaves out what is zero."""
    address = parse_pci_address(name)
    parts = {"domain": address.domain, "bus": address.bus, "dev": address.slot, "func": address.function}
    return {**{part: value for part, value in parts.items() if value}, "vfunc_mask": 1, "rdm_policy": "strict"}


def _usb_config(port: int, name: str) -> dict[str, object]:
    bus, _, number = name.partition(".")
    return {"ctrl": 0, "port": port, "type.hostdev": {"hostbus": int(bus), "hostaddr": int(number)}}


class FakeXen:
    """A host's Xen, in a folder of its own."""

    def __init__(self, folder: Path, *, pci: Sequence[str] = ()) -> None:
        """`pci`: the words of devices that are bound to pciback."""
        self.tools = folder / "tools"
        self._pciback = folder / "pciback"
        self.served = folder / "served"
        """The folder of what dom0's kernel does for domains."""
        self._pci = list(pci)
        self._domids = itertools.count(1)
        self._uuids = itertools.count(1)
        self.domains: dict[str, FakeDomain] = {}
        self.left: dict[int, list[str]] = {}
        """Devices that the backend has for domids that are not listed any more."""
        self.offered_wrongly: set[str] = set()
        """Devices that libxl offers although somebody has them."""
        self.tools.mkdir(parents=True)
        self._pciback.mkdir()
        self.served.mkdir()
        for word in pci:
            (self._pciback / word.removeprefix("pci/")).symlink_to("nowhere")
        for name, text in (("xl", _XL), ("xenstore-ls", _STORE), ("xenstore-watch", _WATCH)):
            self.add_tool(name, text)
        (self.tools / "watch").write_text("@introduceDomain\n@releaseDomain\n")
        self.write()

    def add_tool(self, name: str, text: str) -> None:
        """Put a script among the tools."""
        (self.tools / name).write_text(text)
        (self.tools / name).chmod(0o755)

    def source(self) -> LibxlSource:
        """A source that asks these tools."""
        return LibxlSource(path=str(self.tools), pciback=self._pciback, served=self.served)

    def add(self, name: str, devices: Sequence[str] = (), uuid: str = "") -> FakeDomain:
        """A domain begins."""
        uuid = uuid or str(UUID(int=next(self._uuids) | 0x11111111_2222_4333_8444_000000000000))
        self.domains[uuid] = FakeDomain(name, uuid, next(self._domids), devices)
        self.tell("@introduceDomain")
        return self.domains[uuid]

    def remove(self, uuid: str, *, keeps: bool = False) -> FakeDomain:
        """One is not listed any more. `keeps`: what it has is not given back."""
        domain = self.domains.pop(uuid)
        if keeps:
            self.left[domain.domid] = domain.devices
        self.tell("@releaseDomain")
        return domain

    def tell(self, watch: str) -> None:
        """Write down how everything is, and have `xenstore-watch` tell that something has changed."""
        self.write()
        with (self.tools / "watch").open("a") as file:
            file.write(f"{watch}\n")

    def write(self) -> None:
        """Have the tools print how everything is now."""
        domains = list(self.domains.values())
        details = [_DOMAIN_0_DETAIL, *(each.detail() for each in domains if each.has_config)]
        held = {**{each.domid: each.devices for each in domains}, **self.left}
        given = {word for words in held.values() for word in words} - self.offered_wrongly
        free = [word.removeprefix("pci/") for word in self._pci if word not in given]
        self._put("list-v", HEADINGS + DOMAIN_0 + "".join(each.row() for each in domains))
        self._put("list-l", json.dumps(details, indent=4) + "\n\n")
        self._put("assignable", "".join(f"{address} \n" for address in free))
        self._put("backends", "".join(_backend(domid, words) for domid, words in held.items()))

    def _put(self, name: str, text: str) -> None:
        made = self.tools / f".{name}"
        made.write_text(text)
        os.replace(made, self.tools / name)


def _backend(domid: int, words: Sequence[str]) -> str:
    addresses = [word.removeprefix("pci/") for word in words if word.startswith("pci/")]
    if not addresses:
        return ""
    base = f"/local/domain/0/backend/pci/{domid}"
    lines = [f'{base} = ""', f'{base}/0 = ""', f'{base}/0/frontend-id = "{domid}"', f'{base}/0/state = "3"']
    for number, address in enumerate(addresses):
        lines += [f'{base}/0/key-{number} = "{address}"', f'{base}/0/dev-{number} = "{address}"']
        lines.append(f'{base}/0/state-{number} = "3"')
    return "\n".join([*lines, f'{base}/0/num_devs = "{len(addresses)}"', ""])
