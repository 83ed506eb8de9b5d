"""Virtual functions: what a network card has set for one, and how many a physical function has. It is saved before they
are handed over, and set again.

Whoever gets a virtual function may have it set otherwise, and its host driver takes its MAC address and VLAN from
there. `ip -j link` is what tells and sets it: a kept tool that every host with virtual functions has, where a netlink
library would be one more thing to install for two messages.
"""

import os
from typing import Final

import msgspec

from leasehold.events.identities import DeviceKey
from leasehold.projections.handover import VfNetwork
from leasehold.services.binder.steps import Steps
from leasehold.services.watcher.sysfs import clean, link_target, list_names, read_int

VIRTUAL_FUNCTIONS_MAX: Final = 256
_ZERO_MAC: Final = "00:00:00:00:00:00"


class _Vlan(msgspec.Struct):
    vlan: int = 0
    qos: int = 0
    protocol: str = ""


class _Rate(msgspec.Struct):
    max_tx: int = 0
    min_tx: int = 0


class _Vf(msgspec.Struct):
    vf: int
    address: str = ""
    mac: str = ""
    """As older tools call the address."""
    vlan_list: list[_Vlan] = []
    rate: _Rate = msgspec.field(default_factory=_Rate)
    spoofchk: bool | None = None
    trust: bool | None = None
    link_state: str = ""


class _Link(msgspec.Struct):
    ifname: str = ""
    vfinfo_list: list[_Vf] = []


def read_network(steps: Steps, path: str) -> VfNetwork | str | None:
    """What is set for the virtual function at a path; `None`: it is none, or not of a network card; a text: why it
    cannot be told.
    """
    parent = link_target(f"{path}/physfn")
    if not parent:
        return None
    interface, number = _interface(parent), _number(parent, path)
    if not interface or number < 0:
        return None
    told = _told(steps, os.path.basename(path), interface)
    if isinstance(told, str):
        return f"what {interface} has set for it cannot be read: {told}"
    vf = told.get(number)
    if vf is None:
        return None
    vlan = vf.vlan_list[0] if vf.vlan_list else _Vlan()
    return VfNetwork(
        function=DeviceKey(f"pci/{os.path.basename(parent)}"), number=number, mac=vf.address or vf.mac,
        vlan=vlan.vlan, qos=vlan.qos, protocol=clean(vlan.protocol), spoof_check=vf.spoofchk, trust=vf.trust,
        link_state=clean(vf.link_state), rate_min=vf.rate.min_tx, rate_max=vf.rate.max_tx,
    )  # fmt: skip


def restore_network(steps: Steps, path: str, saved: VfNetwork) -> str:
    """Set for the virtual function at a path again what was saved, as far as it differs; why it is not, or empty."""
    now = read_network(steps, path)
    if isinstance(now, str):
        return now
    if now is None:
        return f"its physical function {saved.function} has no network interface any more"
    # A card may have no address for it until one is set, and takes none away.
    if saved.mac == _ZERO_MAC:
        saved = msgspec.structs.replace(saved, mac=now.mac)
    interface = _interface(link_target(f"{path}/physfn"))
    for words in _differences(saved, now):
        said = steps.run(os.path.basename(path), "ip", "link", "set", "dev", interface, "vf", str(saved.number), *words)
        if isinstance(said, OSError):
            return f"{' '.join(words)} cannot be set for it at {interface} again: {said.strerror or said}"
    return ""


def count_functions(path: str) -> int:
    """How many virtual functions the function at a path has."""
    return max(0, read_int(f"{path}/sriov_numvfs"))


def restore_functions(steps: Steps, path: str, count: int) -> str:
    """Let the function at a path have as many virtual functions again, where its driver took them away when it went (as
    igb's does); why it has not, or empty. What was set for each of them is lost.
    """
    if not count or count_functions(path):
        return ""
    refused = steps.tell(os.path.basename(path), f"{path}/sriov_numvfs", str(count))
    if refused or count_functions(path) == count:
        return refused
    return f"it has {count_functions(path)} virtual functions, and not {count} as before"


def _differences(saved: VfNetwork, now: VfNetwork) -> list[list[str]]:
    """What `ip link set … vf` is told, one by one: a card may know some of it only."""
    words = []
    if saved.mac != now.mac:
        words.append(["mac", saved.mac])
    if (saved.vlan, saved.qos, saved.protocol) != (now.vlan, now.qos, now.protocol):
        protocol = ["proto", saved.protocol] if saved.protocol else []
        words.append(["vlan", str(saved.vlan), *(["qos", str(saved.qos), *protocol] if saved.vlan else [])])
    for name, before, after in (("spoofchk", saved.spoof_check, now.spoof_check), ("trust", saved.trust, now.trust)):
        if before is not None and before != after:
            words.append([name, "on" if before else "off"])
    if saved.link_state and saved.link_state != now.link_state:
        words.append(["state", saved.link_state])
    if (saved.rate_min, saved.rate_max) != (now.rate_min, now.rate_max):
        words.append(["min_tx_rate", str(saved.rate_min), "max_tx_rate", str(saved.rate_max)])
    return words


def _told(steps: Steps, address: str, interface: str) -> dict[int, _Vf] | str:
    said = steps.run(address, "ip", "-j", "link", "show", "dev", interface)
    if isinstance(said, OSError):
        return said.strerror or str(said)
    try:
        links = msgspec.json.decode(said, type=list[_Link])
    except msgspec.DecodeError as error:
        return f"`ip` says what is not understood ({clean(str(error))})"
    return {vf.vf: vf for link in links for vf in link.vfinfo_list}


def _interface(function: str) -> str:
    """The network interface of the physical function at a path; of several the first port's."""
    return next(iter(list_names(f"{function}/net")), "")


def _number(parent: str, path: str) -> int:
    numbered = (number for number in range(VIRTUAL_FUNCTIONS_MAX) if link_target(f"{parent}/virtfn{number}") == path)
    return next(numbered, -1)
