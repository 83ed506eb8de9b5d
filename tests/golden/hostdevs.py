"""Samples of what came with handing devices over: what binders say, what is asked of them, and what follows."""

from typing import Any, Final

import msgspec

from leasehold.events import capabilities, event_types, inputs
from leasehold.events.capabilities import Capability, NewDevice, Order
from leasehold.events.event_types import Event
from leasehold.events.hostdev_events import (
    DeviceGivenBack,
    DevicePrepared,
    DeviceQuarantined,
    DriftDetected,
    DriftResolved,
    HostDeclaredDead,
    LeaseRevoked,
    PrepareFailed,
)
from leasehold.events.hostdevs import Handover, Truth
from leasehold.events.identities import Principal
from leasehold.events.inputs import Input, Observation, Request
from leasehold.projections.rows import Binding, Differing, Drift, Quarantine
from tests.golden import domains, nodedevs
from tests.golden.words import DEVICE, HOLDER, HOST, KEY, NS, PRINCIPAL, REF, REQUEST, USB

_replace: Final = msgspec.structs.replace
_UUID: Final = domains.BOND.uuid
_TRUTHS: Final = (Truth("L512 of vm:web 1", 512), Truth("domain web has it", 700), Truth("bound to igbvf", 690))
HANDOVER: Final = Handover(driver="pciback", unmanaged=True)
_LEASE: Final = inputs.LeaseRequest(
    request_id=REQUEST,
    issued_at_ns=NS,
    devices=(KEY, "usb_1_1_4"),
    holder=HOLDER,
    ttl_ms=60_000,
    host=HOST,
    force=True,
    domain=_UUID,
    gone_ms=90_000,
    keep=True,
    driver="pciback",
)
REQUESTS: Final[tuple[Request, ...]] = (
    inputs.PrepareRequest(
        request_id=REQUEST,
        issued_at_ns=NS,
        domain="web",
        holder=HOLDER,
        ttl_ms=60_000,
        host=HOST,
        bus="pci",
        force=True,
        gone_ms=90_000,
        keep=True,
        unmanaged=True,
    ),
    inputs.ReattachRequest(request_id=REQUEST, issued_at_ns=NS, domain=_UUID, host=HOST, bus="usb"),
    inputs.OperateDeviceRequest(
        request_id=REQUEST,
        issued_at_ns=NS,
        device=KEY,
        operation="detach",
        host=HOST,
        driver="vfio-pci",
        timeout_ms=90_000,
    ),
    inputs.RevokeRequest(request_id=REQUEST, issued_at_ns=NS, lease=512, reason="it is needed", force=True),
    inputs.DeclareDeadRequest(request_id=REQUEST, issued_at_ns=NS, host=HOST, reason="it burnt"),
)
OBSERVATIONS: Final[tuple[Observation, ...]] = (
    inputs.Prepared(KEY, 512, "vfio-pci", "igbvf", "flr"),
    inputs.NotPrepared(KEY, 512, "its IOMMU group has a device on igb"),
    inputs.GivenBack(KEY, 512, "igbvf"),
    inputs.Stuck(KEY, 512, "igbvf does not bind", "load igbvf, then reattach it"),
    inputs.LetGo(512),
)
EVENTS: Final[tuple[Event, ...]] = (
    DevicePrepared(host=HOST, key=KEY, lease=512, driver="vfio-pci", was_driver="igbvf", reset="flr"),
    PrepareFailed(host=HOST, key=KEY, lease=512, reason="its IOMMU group has a device on igb"),
    DeviceGivenBack(host=HOST, key=KEY, lease=512, driver="igbvf"),
    DeviceQuarantined(host=HOST, key=KEY, lease=512, reason="igbvf does not bind", help="load igbvf, then reattach it"),
    LeaseRevoked(request=REF, lease=512, reason="it is needed", force=True),
    HostDeclaredDead(request=REF, host=HOST, reason="it burnt"),
    DriftDetected(device=DEVICE, kind="driver", leased=_TRUTHS[0], attached=_TRUTHS[1], bound=_TRUTHS[2]),
    DriftResolved(device=DEVICE, kind="driver", since_position=900),
)
ORDERS: Final[tuple[Order, ...]] = (
    capabilities.SetVirtualFunctions(parent=KEY, count=4),
    capabilities.DetachDevice(device=KEY, driver="pciback"),
    capabilities.ReattachDevice(device=KEY),
    capabilities.ResetDevice(device=KEY),
)
_CARD, _STICK = nodedevs.PARTS["capability", Capability][1:3]
_CAPABILITIES: Final[tuple[Capability, ...]] = (
    _replace(_CARD, resets=("flr", "bus"), isolation="no_acs"),
    _replace(_STICK, peer="usb/0000:00:14.0/3-1"),
)


def _grown(value: Any) -> Any:
    """A sample of what was there before, of a card that tells what is told now."""
    return _replace(value, device=_replace(value.device, capability=_CAPABILITIES[0]))


_SEEN: Final = _grown(nodedevs.GROWN[Observation][0])
GROWN: Final[dict[Any, tuple[Any, ...]]] = {
    Request: (_LEASE,),
    Observation: (_SEEN,),
    Input: (inputs.Asked(PRINCIPAL, _LEASE), _replace(nodedevs.OBSERVED, observations=(_SEEN, *OBSERVATIONS))),
    Event: (
        event_types.LeaseGranted(
            request=REF,
            tenant=Principal("the-tenant"),
            holder=HOLDER,
            devices=(DEVICE, USB),
            ttl_ms=60_000,
            expires_at_ns=NS + 60,
            forced=True,
            bond=domains.BOND,
            handover=HANDOVER,
        ),
        *(_grown(event) for event in nodedevs.EVENTS if hasattr(event, "device") and hasattr(event, "how")),
    ),
}
"""Types that were there before, with the fields that came to them."""
PARTS: Final[dict[tuple[str, Any], tuple[Any, ...]]] = {
    ("order", Order): ORDERS,
    ("new_device", NewDevice): (capabilities.NewVirtualFunctions(parent="pci_0000_03_00_0", count=4),),
}
"""What came to the unions that stand within others."""
PARTS_GROWN: Final[dict[tuple[str, Any], tuple[Any, ...]]] = {("capability", Capability): _CAPABILITIES}
BINDING: Final = Binding(
    lease=512, driver="igbvf", was_driver="igbvf", reset="flr", given_back=True, position=800, at_ns=NS
)
QUARANTINE: Final = Quarantine(lease=512, reason="it hangs", help="reboot", position=801, at_ns=NS)
DRIFT: Final = Drift(kind="driver", leased=_TRUTHS[0], attached=_TRUTHS[1], bound=_TRUTHS[2], position=900, at_ns=NS)
DIFFERING: Final = Differing(kind="kept", since_ns=NS)
