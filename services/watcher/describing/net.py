"""Network interfaces: NICs, and the virtual ones, with what makes a bridge, a VLAN or a bond."""

from typing import Final

from leasehold.events.capabilities import Bond, Bridge, Net, Vlan
from leasehold.events.devices import DeviceDescription
from leasehold.services.watcher.describing.look import Look, VlanLine, described, kernel_says, small_int
from leasehold.services.watcher.ethtool import features_of
from leasehold.services.watcher.places import Place
from leasehold.services.watcher.sysfs import (
    THIS_MACHINE,
    HostRoot,
    clean,
    exists,
    link_name,
    list_names,
    read_int,
    read_table,
    read_text,
    to_int,
)

ARPHRD_ETHER: Final = 1
INTERFACE_CHARS_MAX: Final = 64
IFF_TAP: Final = 0x0002


def describe_net(look: Look, place: Place) -> DeviceDescription:
    """A network interface."""
    path = place.path
    address = read_text(f"{path}/address", 64)
    says = kernel_says(path)
    link_state = read_text(f"{path}/operstate", 32)
    return described(
        look,
        place,
        extra=address,
        driver=clean(link_name(f"{path}/device/driver")),
        capability=Net(
            interface=clean(place.sysname, INTERFACE_CHARS_MAX),
            address=address,
            medium=_medium(path, says),
            link_state=link_state,
            # Drivers ask their firmware for the speed, so a link that is down is not asked.
            link_speed_mbps=max(small_int(f"{path}/speed"), 0) or -1 if link_state == "up" else -1,
            features=features_of(path) if look.root.sys == THIS_MACHINE.sys else (),
            device_type=_device_type(path, says),
            master=_known(look, link_name(f"{path}/master")),
            kind=_kind(look, place, says),
        ),
    )


def _medium(path: str, says: dict[str, str]) -> str:
    if says.get("DEVTYPE") == "wlan" or exists(f"{path}/phy80211"):
        return "80211"
    return "80203" if read_int(f"{path}/type") == ARPHRD_ETHER else ""


def _device_type(path: str, says: dict[str, str]) -> str:
    if kind := says.get("DEVTYPE", ""):
        return kind
    if (flags := read_int(f"{path}/tun_flags", 16)) >= 0:
        return "tap" if flags & IFF_TAP else "tun"
    return ""


def _known(look: Look, interface: str) -> str:
    """The key of an interface, or its name if it is none of the devices known."""
    return look.interfaces.get(interface, clean(interface, INTERFACE_CHARS_MAX))


def _kind(look: Look, place: Place, says: dict[str, str]) -> Bridge | Vlan | Bond | None:
    path = place.path
    if exists(f"{path}/bridge"):
        return Bridge(
            bridge_id=read_text(f"{path}/bridge/bridge_id", 64),
            stp=read_int(f"{path}/bridge/stp_state") > 0,
            vlan_filtering=read_int(f"{path}/bridge/vlan_filtering") == 1,
        )
    if exists(f"{path}/bonding"):
        return Bond(
            mode=read_text(f"{path}/bonding/mode", 64).partition(" ")[0],
            active=read_text(f"{path}/bonding/active_slave", INTERFACE_CHARS_MAX),
            primary=read_text(f"{path}/bonding/primary", INTERFACE_CHARS_MAX),
        )
    if says.get("DEVTYPE") == "vlan" or place.sysname in look.vlans:
        line = look.vlans.get(place.sysname, VlanLine(-1, ""))
        lower = line.lower or next((each[6:] for each in list_names(path) if each.startswith("lower_")), "")
        return Vlan(id=line.id, lower=_known(look, lower))
    return None


def read_vlans(root: HostRoot) -> dict[str, VlanLine]:
    """The VLANs by name: `eth0.10 | 10 | eth0` in /proc/net/vlan/config, behind two lines of heading."""
    vlans: dict[str, VlanLine] = {}
    for line in read_table(root.proc / "net/vlan/config")[2:]:
        name, _, rest = line.partition("|")
        number, _, lower = rest.partition("|")
        if lower:
            vlan_id = to_int(number)
            vlans[name.strip()] = VlanLine(vlan_id if 0 <= vlan_id < 4_096 else -1, lower.strip())
    return vlans
