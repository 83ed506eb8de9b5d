"""The SCSI world: hosts (with Fibre Channel), targets, logical units, and their pass-through nodes."""

import os
import re
from typing import Final

from leasehold.events.capabilities import FcHost, ScsiDevice, ScsiGeneric, ScsiHost, ScsiTarget, VportOps
from leasehold.events.devices import DeviceDescription
from leasehold.services.watcher.describing.look import Look, described, devnodes, kernel_says, node_of, small_int
from leasehold.services.watcher.labels import remote_port, remote_wwpn, world_wide_name
from leasehold.services.watcher.places import Place
from leasehold.services.watcher.sysfs import clean, read_int, read_text, to_int

SCSI_TYPES: Final = {
    0: "disk",
    1: "tape",
    3: "processor",
    4: "worm",
    5: "cdrom",
    6: "scanner",
    7: "mod",
    8: "changer",
    12: "raid",
    13: "enclosure",
}
"""By the `type` of a logical unit (SPC, peripheral device type), as libvirt calls them."""

_HOST: Final = re.compile(r"host([0-9]{1,9})")
_VPORT: Final = re.compile(r"vport-[0-9]+:[0-9]+-[0-9]+")


def describe_scsi_host(look: Look, place: Place) -> DeviceDescription:
    """A SCSI host, an HBA among them."""
    path, name = place.path, place.sysname
    matched = _HOST.fullmatch(name)
    common, channel = f"{path}/scsi_host/{name}", f"{path}/fc_host/{name}"
    return described(
        look,
        place,
        capability=ScsiHost(
            host=int(matched[1]) if matched else -1,
            unique_id=small_int(f"{common}/unique_id"),
            driver=read_text(f"{common}/proc_name", 64),
            fc_host=_fc_host(channel),
            vport_ops=_vport_ops(channel) or _vport_ops(common),
            is_vport=_VPORT.fullmatch(os.path.basename(os.path.dirname(path))) is not None,
        ),
    )


def _fc_host(folder: str) -> FcHost | None:
    if not os.path.exists(folder):
        return None
    return FcHost(
        wwnn=world_wide_name(f"{folder}/node_name"),
        wwpn=world_wide_name(f"{folder}/port_name"),
        fabric_wwn=world_wide_name(f"{folder}/fabric_name"),
        port_state=read_text(f"{folder}/port_state", 64),
        port_type=read_text(f"{folder}/port_type", 64),
    )


def _vport_ops(folder: str) -> VportOps | None:
    """Older kernels have the files with the SCSI host's."""
    if not os.path.exists(f"{folder}/vport_create"):
        return None
    return VportOps(max_vports=small_int(f"{folder}/max_npiv_vports"), vports=small_int(f"{folder}/npiv_vports_inuse"))


def describe_scsi_target(look: Look, place: Place) -> DeviceDescription:
    """A SCSI target; over Fibre Channel with the port that it is behind."""
    port = remote_port(place.path)
    return described(
        look,
        place,
        capability=ScsiTarget(
            target=clean(place.sysname, 64),
            remote_port=clean(os.path.basename(port), 64),
            remote_wwpn=remote_wwpn(port) if port else "",
        ),
    )


def describe_scsi(look: Look, place: Place) -> DeviceDescription:
    """A logical unit."""
    host, bus, target, lun = (to_int(part) for part in place.sysname.split(":"))
    return described(
        look,
        place,
        capability=ScsiDevice(
            host=host, bus=bus, target=target, lun=lun, scsi_type=SCSI_TYPES.get(read_int(f"{place.path}/type"), "")
        ),
    )


def describe_scsi_generic(look: Look, place: Place) -> DeviceDescription:
    """A pass-through node."""
    node = node_of(kernel_says(place.path), place.sysname)
    return described(look, place, devnodes=devnodes(node, look.properties(place)), capability=ScsiGeneric(char=node))
