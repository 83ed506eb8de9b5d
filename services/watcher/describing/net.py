"""Network interfaces: NICs, and the virtual ones, with what makes a bridge, a VLAN or a bond."""

import errno
import os
from typing import Final

from leasehold.events.capabilities import Bond, Bridge, Net, Vlan
from leasehold.events.devices import DeviceDescription
from leasehold.services.watcher.describing.look import Look, described, kernel_says, small_int
from leasehold.services.watcher.ethtool import features_of
from leasehold.services.watcher.linkkinds import LinkKind
from leasehold.services.watcher.places import Place
from leasehold.services.watcher.sysfs import (
    THIS_MACHINE,
    check_means,
    clean,
    link_name,
    list_names,
    read_int,
    read_text,
)

ARPHRD_ETHER: Final = 1
INTERFACE_CHARS_MAX: Final = 64
_RDMA: Final = "rdma"
IFF_TAP: Final = 0x0002


class _Told:
    """What is known of one interface before its files are read."""

    def __init__(self, look: Look, place: Place) -> None:
        self.path = place.path
        self.files = frozenset(list_names(place.path))
        """Asking for them once is cheaper than asking for each that may be there."""
        self.says = kernel_says(place.path)
        self.link = look.links.get(place.sysname, LinkKind())

    def target(self, name: str) -> str:
        return link_name(f"{self.path}/{name}") if name in self.files else ""


def describe_net(look: Look, place: Place) -> DeviceDescription | None:
    """A network interface; none for one on its way out, whose files are there and say nothing any more."""
    path, told = place.path, _Told(look, place)
    address = read_text(f"{path}/address", 64)
    link_state = read_text(f"{path}/operstate", 32)
    device = described(
        look,
        place,
        extra=address,
        driver=clean(link_name(f"{path}/device/driver")) if "device" in told.files else "",
        capability=Net(
            interface=clean(place.sysname, INTERFACE_CHARS_MAX),
            address=address,
            medium=_medium(told),
            link_state=link_state,
            # Drivers ask their firmware for the speed, so a link that is down is not asked.
            link_speed_mbps=max(small_int(f"{path}/speed"), 0) or -1 if link_state == "up" else -1,
            features=_features(look, told, _known_features(look, place, address)),
            device_type=_device_type(told),
            master=_known(look, told.target("master")),
            kind=_kind(look, told),
        ),
    )
    # Asked last: whatever was read before that was told by an interface that was there.
    return None if "ifindex" in told.files and _is_leaving(path) else device


def _is_leaving(path: str) -> bool:
    """Whether the kernel is taking the interface away: its files are there still, and cannot be read any more."""
    try:
        with open(f"{path}/ifindex", "rb") as file:
            file.read(16)
    except OSError as error:
        check_means(error)
        return error.errno == errno.EINVAL
    return False


def _medium(told: _Told) -> str:
    if told.says.get("DEVTYPE") == "wlan" or "phy80211" in told.files:
        return "80211"
    return "80203" if read_int(f"{told.path}/type") == ARPHRD_ETHER else ""


def _features(look: Look, told: _Told, unknown: tuple[str, ...]) -> tuple[str, ...]:
    """What ethtool tells, of this machine's interfaces only; whether it can do RDMA, its device's folder tells."""
    rdma = (_RDMA,) if "device" in told.files and os.path.exists(f"{told.path}/device/infiniband") else ()
    found = features_of(told.path, unknown) if look.root.sys == THIS_MACHINE.sys else ()
    return tuple(sorted((*found, *rdma)))


def _known_features(look: Look, place: Place, address: str) -> tuple[str, ...]:
    """What the log has of the same interface, ethtool's words only."""
    known = look.known.get(place.key)
    was = known.capability if known is not None else None
    if not isinstance(was, Net) or was.address != address:
        return ()
    return tuple(word for word in was.features if word != _RDMA)


def _device_type(told: _Told) -> str:
    if "tun_flags" in told.files:
        return "tap" if max(read_int(f"{told.path}/tun_flags", 16), 0) & IFF_TAP else "tun"
    return told.link.kind or told.says.get("DEVTYPE", "")


def _known(look: Look, interface: str) -> str:
    """The key of an interface, or its name if it is none of the devices known."""
    return look.interfaces.get(interface, clean(interface, INTERFACE_CHARS_MAX))


def _kind(look: Look, told: _Told) -> Bridge | Vlan | Bond | None:
    path = told.path
    if "bridge" in told.files:
        return Bridge(
            bridge_id=read_text(f"{path}/bridge/bridge_id", 64),
            stp=read_int(f"{path}/bridge/stp_state") > 0,
            vlan_filtering=read_int(f"{path}/bridge/vlan_filtering") == 1,
        )
    if "bonding" in told.files:
        return Bond(
            mode=read_text(f"{path}/bonding/mode", 64).partition(" ")[0],
            active=read_text(f"{path}/bonding/active_slave", INTERFACE_CHARS_MAX),
            primary=read_text(f"{path}/bonding/primary", INTERFACE_CHARS_MAX),
        )
    if "vlan" in (told.link.kind, told.says.get("DEVTYPE")):
        lower = told.link.lower or next((each[6:] for each in sorted(told.files) if each.startswith("lower_")), "")
        return Vlan(id=told.link.vlan_id, lower=_known(look, lower), protocol=told.link.vlan_protocol)
    return None
