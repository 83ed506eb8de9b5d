"""Requests for devices to be made, and what agents tell of how they know and what they did: checked at the door."""

import json
from typing import Any

import msgspec
import pytest

from leasehold.events import codec, inputs, limits
from leasehold.events.capabilities import NewMdev, NewVport
from leasehold.events.devices import changed_fields, field_of
from leasehold.events.errors import InvalidInputError
from leasehold.events.inputs import Request
from tests.golden.nodedevs import _CAPABILITIES, _DESCRIPTION
from tests.golden.samples import SAMPLES, file_of

WWN = "2101001b32a9da4e"
VPORT: dict[str, Any] = {
    "type": "vport", "parent": "scsi_host8", "parent_wwnn": WWN, "parent_wwpn": WWN, "parent_fabric_wwn": WWN,
    "wwnn": WWN, "wwpn": WWN,
}  # fmt: skip
MDEV: dict[str, Any] = {
    "type": "mdev", "parent": "pci_0000_06_00_0", "mdev_type": "i915-GVTg_V5_4",
    "uuid": "c2177883-f1bb-47f0-914d-32a22e3a8804",
}  # fmt: skip


def create(device: dict[str, Any], **changes: Any) -> bytes:
    """A request for a device."""
    body = {"type": "create_device.v1", "request_id": "r1", "issued_at_ns": 1, "host": "h1", "timeout_ms": 60_000}
    return json.dumps({**body, "device": device, **changes}).encode()


@pytest.mark.parametrize(("device", "kind"), [(VPORT, NewVport), (MDEV, NewMdev)])
def test_requests_read_back(device: dict[str, Any], kind: type[Any]) -> None:
    """A request for a device is read as what was sent, and written into the record as it was."""
    request = codec.decode_request("create_device", create(device))
    assert isinstance(request, inputs.CreateDeviceRequest)
    assert type(request) is inputs.CreateDeviceRequest
    assert type(request.device) is kind
    assert msgspec.to_builtins(request.device) == device
    again: Request = msgspec.json.decode(codec.encode(request), type=Request)
    assert again == request
    assert codec.verb_of(again) == "create_device"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (create({**VPORT, "parent_wwn": WWN}), "device.parent_wwn"),
        (create({**MDEV, "wwpn": WWN}), "device.wwpn"),
        (create({**VPORT, "type": "disk"}), "device.type"),
        (create({"type": "mdev", "parent": "x"}), "device.mdev_type"),
        (create({"type": "mdev", "mdev_type": "x"}), "device.parent"),
        (create({**MDEV, "parent": ""}), "device.parent"),
        (create({**MDEV, "mdev_type": "../x"}), "device.mdev_type"),
        (create({**MDEV, "mdev_type": ""}), "device.mdev_type"),
        (create({**MDEV, "mdev_type": "x" * 129}), "device.mdev_type"),
        (create({**MDEV, "uuid": "C2177883-f1bb-47f0-914d-32a22e3a8804"}), "device.uuid"),
        (create({**MDEV, "uuid": "1"}), "device.uuid"),
        (create({**VPORT, "parent": "a\nb"}), "device.parent"),
        *((create({**VPORT, name: "0" * 16}), f"device.{name}") for name in VPORT if "ww" in name),
        (create({**VPORT, "wwpn": WWN[1:]}), "device.wwpn"),
        (create(VPORT, timeout_ms=0), "timeout_ms"),
        (create(VPORT, timeout_ms=limits.ORDER_TIMEOUT_MS_MAX + 1), "timeout_ms"),
        (create(VPORT, host="a.b"), "host"),
        (create({"type": "vport"}, host=""), "host"),
        (create({"type": "vport", "parent_fabric_wwn": WWN}, host=""), "host"),
        (create(VPORT, request_id=""), "request_id"),
    ],
)
def test_bounds_name_the_field(body: bytes, field: str) -> None:
    """What a device cannot be, and fields that it does not have, are refused by name."""
    with pytest.raises(InvalidInputError) as caught:
        codec.decode_request("create_device", body)
    assert caught.value.field == field


@pytest.mark.parametrize("said", [{"parent": "h1/scsi_host8"}, {"parent_wwnn": WWN}, {"parent_wwpn": WWN}])
def test_a_parent_tells_the_host(said: dict[str, str]) -> None:
    """The host may be left out where the parent is named."""
    request = codec.decode_request("create_device", create({"type": "vport", **said}, host=""))
    assert isinstance(request, inputs.CreateDeviceRequest)


# --- what agents tell ---------------------------------------------------------------------------------------------


def observed(*observations: dict[str, Any]) -> bytes:
    """A message of an agent."""
    sample: dict[str, Any] = json.loads(file_of("observed.v1").read_bytes())
    return json.dumps({**sample, "observations": observations}).encode()


def told(kind: str, **changes: Any) -> dict[str, Any]:
    """A kept observation, changed."""
    sample: dict[str, Any] = json.loads(file_of(kind).read_bytes())
    return {**sample, **changes}


def how(**changes: Any) -> dict[str, Any]:
    """How something was learnt, changed."""
    return {**told("device_flaps.v1")["how"], **changes}


def seen(**changes: Any) -> dict[str, Any]:
    """A device that was seen, of which the description is changed."""
    sample = told("device_seen.v1+node_devices")
    return {**sample, "device": {**sample["device"], **changes}}


def test_observations_read_back() -> None:
    """A message is read as what the agent sent."""
    name = "observed.v1+node_devices"
    assert codec.decode_observed(file_of(name).read_bytes()) == SAMPLES[name][0]


@pytest.mark.parametrize(
    ("said", "field"),
    [
        (told("device_flaps.v1", key="pci/0000:0A:00.0"), "key"),
        (told("device_flaps.v1", how=None), "observations"),
        *(
            (told(kind, how=how(**wrong)), f"how.{next(iter(wrong))}")
            for kind in ("device_flaps.v1", "device_seen.v1+node_devices", "device_gone.v1+node_devices")
            for wrong in (
                {"why": "because"}, {"source": "systemd"}, {"actions": ["x"] * 17}, {"actions": [""]},
                {"actions": ["a\nb"]}, {"flaps": -1}, {"flaps": 2**31}, {"heard_at_ns": -1},
            )
        ),
        (seen(devnodes=["/dev/x"] * 18), "device.devnodes"),
        (seen(capability={"type": "disk"}), "observations"),
        (seen(capability={"type": "pci", "revision": "1"}), "observations"),
        (told("missed_events.v1", times=0), "times"),
        (told("missed_events.v1", times=2**31), "times"),
        (told("order_done.v1", order=0), "order"),
        (told("order_done.v1", device="x"), "device"),
        (told("order_not_done.v1", order=2**53), "order"),
        (told("order_not_done.v1", reason=""), "reason"),
        (told("order_not_done.v1", reason="x" * 513), "reason"),
        (told("order_not_done.v1", reason="a\nb"), "reason"),
    ],
)  # fmt: skip
def test_bounds_of_observations(said: dict[str, Any], field: str) -> None:
    """What is told beyond a bound, or in other words than are known, is refused with the field that is wrong."""
    with pytest.raises(InvalidInputError) as caught:
        codec.decode_observed(observed(said))
    assert caught.value.field.startswith(field)


def test_changes_of_a_capability_name_its_fields() -> None:
    """Of a capability of the same type the fields that differ are named, of another the whole."""
    pci, net = _CAPABILITIES[1], _CAPABILITIES[4]
    before = msgspec.structs.replace(_DESCRIPTION, capability=net)
    after = msgspec.structs.replace(
        before, driver="x", capability=msgspec.structs.replace(net, link_state="down", kind=None)
    )
    assert changed_fields(before, after) == ("capability.kind", "capability.link_state", "driver")
    assert field_of(after, "capability.link_state") == "down"
    assert field_of(after, "driver") == "x"
    assert field_of(after, "capability.size_bytes") is None
    assert changed_fields(before, msgspec.structs.replace(before, capability=pci)) == ("capability",)
    assert changed_fields(before, msgspec.structs.replace(before, capability=None)) == ("capability",)
