"""Virtual HBAs (NPIV): a Fibre Channel port that shares the wire of another, with world wide names of its own.

The kernel makes one when `<wwpn>:<wwnn>` is written to its HBA's `vport_create`, and takes it away by `vport_delete`
(Linux, `drivers/scsi/scsi_transport_fc.c`). The port stands at once below the HBA, as `vport-8:0-0`; the SCSI host
below that comes, and goes, when the driver has got so far. World wide names here are 16 hex digits, lower case.
"""

import os
from collections.abc import Iterator

import msgspec

from leasehold.services.creator.attempt import TOO_LATE, UNDO_S, Attempt, Done, NotDone, Outcome
from leasehold.services.watcher.sysfs import HostRoot, linked_members, read_text


class _Port(msgspec.Struct, frozen=True):
    path: str
    """Of the SCSI host, or of the vport."""
    is_host: bool
    wwnn: str
    wwpn: str


class _Seen(msgspec.Struct, frozen=True):
    """What there is of a virtual HBA."""

    host: str = ""
    """Path of its SCSI host."""
    vport: str = ""
    """Path of the port that it is by."""
    other: str = ""
    """Path of another port of that name."""

    @property
    def is_there(self) -> bool:
        return bool(self.host or self.vport)


def create(attempt: Attempt, hba: str, wwnn: str, wwpn: str) -> Outcome:
    """Make a virtual HBA on the SCSI host at path `hba`, unless it is there; what was made in vain is taken away."""
    seen = _look(attempt.root, hba, wwnn, wwpn)
    if seen.other:
        return NotDone(f"{os.path.basename(seen.other)} has the port name {wwpn} already")
    if not seen.is_there:
        attribute = _attribute(hba, "vport_create")
        if not attribute:
            return NotDone(f"{os.path.basename(hba)} can have no virtual HBAs")
        if attempt.is_over:
            return NotDone(TOO_LATE)
        refused = attempt.tell_kernel(attribute, f"{wwpn}:{wwnn}")
        # What is there all the same was made by somebody else meanwhile, and is what was asked for.
        if refused and not _look(attempt.root, hba, wwnn, wwpn).is_there:
            return NotDone(refused)
    attempt.until(lambda: bool(_look(attempt.root, hba, wwnn, wwpn).host) or not os.path.isdir(hba))
    seen = _look(attempt.root, hba, wwnn, wwpn)
    if seen.host:
        return Done(seen.host)
    if attempt.has_ended:
        return None
    if not os.path.isdir(hba):
        return NotDone(f"{os.path.basename(hba)} went away before its virtual HBA had come")
    return _undone(attempt, hba, wwnn, wwpn, "the kernel took it, but no SCSI host came of it in time")


def destroy(attempt: Attempt, hba: str, wwnn: str, wwpn: str) -> Outcome:
    """Take a virtual HBA away from the SCSI host at path `hba`, unless it is gone."""
    if not _look(attempt.root, hba, wwnn, wwpn).is_there:
        return Done()
    if attempt.is_over:
        return NotDone(TOO_LATE)
    refused = _delete(attempt, hba, wwnn, wwpn)
    # What is refused may be gone all the same: somebody else was faster.
    if refused and _look(attempt.root, hba, wwnn, wwpn).is_there:
        return NotDone(refused)
    if attempt.until(lambda: not _look(attempt.root, hba, wwnn, wwpn).is_there):
        return Done()
    return None if attempt.has_ended else NotDone("the kernel took it, but it was not gone in time; it may still go")


def host_of(root: HostRoot, hba: str, wwnn: str, wwpn: str) -> str:
    """Path of the virtual HBA's SCSI host below the one at `hba`; empty where there is none."""
    return _look(root, hba, wwnn, wwpn).host


def _undone(attempt: Attempt, hba: str, wwnn: str, wwpn: str, reason: str) -> NotDone:
    """Take away what there is of it if this order has begun it, and say what is left."""
    if not attempt.is_begun:
        return NotDone("it was there before, but no SCSI host came of it in time; it is left as it was")
    refused = _delete(attempt, hba, wwnn, wwpn) if _look(attempt.root, hba, wwnn, wwpn).is_there else ""
    if attempt.until(lambda: not _look(attempt.root, hba, wwnn, wwpn).is_there, least_s=UNDO_S):
        return NotDone(reason)
    return NotDone(f"{reason}; it could not be taken back ({refused or 'it does not go'})")


def _delete(attempt: Attempt, hba: str, wwnn: str, wwpn: str) -> str:
    attribute = _attribute(hba, "vport_delete")
    return attempt.tell_kernel(attribute, f"{wwpn}:{wwnn}") if attribute else "there is no vport_delete"


def _attribute(hba: str, name: str) -> str:
    """Where an HBA is told so: some drivers have it with the SCSI host."""
    number = os.path.basename(hba)
    paths = (f"{hba}/{kind}/{number}/{name}" for kind in ("fc_host", "scsi_host"))
    return next((path for path in paths if os.path.exists(path)), "")


def _look(root: HostRoot, hba: str, wwnn: str, wwpn: str) -> _Seen:
    seen = _Seen()
    for port in _ports(root):
        if port.wwpn != wwpn:
            continue
        if port.wwnn != wwnn or not port.path.startswith(f"{hba}/"):
            seen = msgspec.structs.replace(seen, other=port.path)
        elif port.is_host:
            seen = msgspec.structs.replace(seen, host=port.path)
        else:
            seen = msgspec.structs.replace(seen, vport=port.path)
    return seen


def _ports(root: HostRoot) -> Iterator[_Port]:
    for kind in ("fc_host", "fc_vports"):
        for _, path in linked_members(root.sys_path(f"class/{kind}")):
            # The class's folder stands below the device, like …/host9/fc_host/host9.
            device = os.path.dirname(os.path.dirname(path))
            yield _Port(device, kind == "fc_host", _wwn(f"{path}/node_name"), _wwn(f"{path}/port_name"))


def _wwn(path: str) -> str:
    return read_text(path).lower().removeprefix("0x")
