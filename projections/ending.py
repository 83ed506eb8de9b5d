"""What the end of a lease brings with it at once: nobody need wait for evidence that is there already."""

from leasehold.events.event_types import (
    DeviceFreed,
    Event,
    LeaseExpired,
    LeaseOutlived,
    LeaseReleased,
)
from leasehold.events.hostdev_events import LeaseRevoked
from leasehold.projections.state import State


def ending(state: State, end: LeaseReleased | LeaseExpired | LeaseOutlived | LeaseRevoked) -> list[Event]:
    """The end of a living lease, and behind it the freeing of those of its devices that are known to be unused.

    What was shared, or only looked at, was handed over to nobody: it is over with the end alone.
    """
    events: list[Event] = [end]
    lease = state.leases[end.lease]
    for device in lease.devices if not lease.mode else ():
        evidence = state.evidence_of_free(state.devices[device])
        if evidence:
            events.append(DeviceFreed(device=device, lease=end.lease, evidence=evidence))
    return events
