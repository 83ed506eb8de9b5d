"""The oracle itself: it says what a reader of the JSON would say, and notices what cannot be."""

import json
from typing import Any

import pytest

from tests.day.oracle import RawLog


def _record(at_ns: int, *events: dict[str, Any]) -> bytes:
    return json.dumps({"decided_at_ns": at_ns, "steps": [{"input": {}, "events": list(events)}]}).encode()


def _granted(*devices: str, request_id: str = "r1", principal: str = "a@lab") -> dict[str, Any]:
    request = {"principal": principal, "request_id": request_id}
    return {"type": "lease_granted.v2", "request": request, "holder": "vm", "devices": list(devices)}


_ASKED = {"principal": "op", "request_id": "look"}


def test_a_tenure_from_grant_to_freedom() -> None:
    """A device belongs to its lease from the grant on, is ending behind its end, and nobody's when it is freed."""
    log = RawLog()
    log.add(1, _record(10, {"type": "tick"}, _granted("h/a", "h/b")))
    log.add(2, _record(20, {"type": "lease_expired.v1", "lease": 257}))
    log.add(3, _record(20, {"type": "device_freed.v1", "lease": 257, "device": "h/a"}))
    assert log.owners_at(256) == {}
    held = log.owners_at(257)
    assert held.keys() == {"h/a", "h/b"}
    end = (257, 10, "expired", 512, 20, 768, 20)
    assert held["h/a"].told_at(257) == ("h/a", "L257", "vm", "a@lab", "lab", "leased", *end)
    assert log.owners_at(512)["h/a"].told_at(512)[5:] == ("ending", *end)
    assert log.owners_at(512)["h/b"].told_at(512)[-2:] == (0, 0)
    assert log.owners_at(768).keys() == {"h/b"}
    assert [log.end_at(ns) for ns in (9, 10, 19, 20, 99)] == [0, 511, 511, 1_023, 1_023]
    assert [(effect.position, effect.type, effect.lease) for effect in log.effects["a@lab", "r1"]] == [
        (257, "lease_granted", 257)
    ]


def test_what_has_ended_is_taken_by_force() -> None:
    """How and when it ended stays."""
    log = RawLog()
    log.add(1, _record(10, _granted("h/a")))
    log.add(2, _record(20, {"type": "lease_expired.v1", "lease": 256}))
    log.add(3, _record(30, {"type": "lease_revoked.v1", "request": _ASKED, "lease": 256, "force": True}))
    assert log.owners_at(768)["h/a"].told_at(768)[5:] == ("ending", 256, 10, "expired", 512, 20, 0, 0)


@pytest.mark.parametrize(("kind", "ended"), [("prepare_failed", "failed"), ("lease_revoked", "revoked")])
def test_a_tenure_that_is_cut_short(kind: str, ended: str) -> None:
    """It fails, or is revoked; what binders say of its devices changes neither them nor whose they are."""
    log = RawLog()
    log.add(1, _record(10, _seen("appeared", name="n"), _granted("h/x")))
    said = {"host": "h", "key": "x", "lease": 257}
    log.add(2, _record(20, {"type": "device_prepared.v1", **said}, {"type": f"{kind}.v1", **said}))
    log.add(3, _record(30, {"type": "device_quarantined.v1", **said}, {"type": "device_given_back.v1", **said}))
    assert log.owners_at(513)["h/x"].told_at(513)[5:] == ("ending", 257, 10, ended, 513, 20, 0, 0)
    log.add(4, _record(40, {"type": "device_freed.v1", "lease": 257, "device": "h/x"}))
    log.add(5, _record(50, {"type": "device_freed.v1", "lease": 0, "device": "h/x", "request": _ASKED}))
    assert log.owners_at(1_024) == {}
    assert [seen.position for seen in log.devices["h/x"]] == [256]


@pytest.mark.parametrize(
    "events",
    [
        [_granted("h/a", request_id="r2")],
        [{"type": "device_freed.v1", "lease": 256, "device": "h/a"}],
        [{"type": "lease_expired.v1", "lease": 256}, {"type": "lease_released.v1", "lease": 256}],
    ],
    ids=["two owners", "freed while it lives", "ends twice"],
)
def test_what_cannot_be_is_noticed(events: list[dict[str, Any]]) -> None:
    """Two owners of one device, freedom before the end, and two ends are not taken."""
    log = RawLog()
    log.add(1, _record(10, _granted("h/a")))
    with pytest.raises(AssertionError):
        log.add(2, _record(20, *events))
        log.owners_at(1_000)


def _seen(kind: str, *, flaps: int = 0, **fields: Any) -> dict[str, Any]:
    event = {"type": f"device_{kind}.v1", "host": "h", "how": {"why": "event", "flaps": flaps}}
    return event | ({"device": {"key": "x", **fields}} if fields else {"key": "x"})


def test_what_a_device_was_like() -> None:
    """Its last description, whether it was there, and its flaps, which begin anew with another thing."""
    log = RawLog()
    events = (
        _seen("appeared", driver="a"), _seen("changed", driver="b", flaps=2), _seen("flapped", flaps=1),
        _seen("missing"), _seen("flapped", flaps=1), _seen("reappeared", driver="b"), _seen("replaced", driver="c"),
    )  # fmt: skip
    log.add(1, _record(10, *events))
    rows = [log.devices_at(256 + index)["h/x"] for index in range(len(events))]
    assert [(row.is_there, row.flaps, row.description["driver"]) for row in rows] == [
        (True, 0, "a"), (True, 2, "b"), (True, 3, "b"), (False, 3, "b"), (False, 4, "b"), (True, 4, "b"),
        (True, 0, "c"),
    ]  # fmt: skip
    assert log.devices_at(255) == {}


ORDERED: dict[str, Any] = {"type": "host_ordered.v1", "host": "h", "order": {"type": "create_mdev"}}
DONE: dict[str, Any] = {"type": "order_carried_out.v1", "host": "h", "order": 256, "device": "x"}
FAILED: dict[str, Any] = {"type": "order_failed.v1", "host": "h", "order": 256, "reason": "no"}


@pytest.mark.parametrize(
    "events",
    [
        [_seen("changed", driver="a")],
        [_seen("appeared", driver="a"), _seen("appeared", driver="a")],
        [_seen("appeared", driver="a"), _seen("missing"), _seen("missing")],
        [ORDERED, DONE, DONE],
        [ORDERED, FAILED, DONE | {"late": True}],
        [ORDERED, FAILED | {"timed_out": True}, DONE],
        [ORDERED, DONE | {"late": True}],
        [ORDERED, DONE | {"host": "other"}],
        [DONE],
    ],
    ids=[
        "changed unseen", "appears twice", "goes twice", "done twice", "done behind its failure", "late unsaid",
        "late and not", "done elsewhere", "never given",
    ],
)  # fmt: skip
def test_devices_and_orders_that_cannot_be_are_noticed(events: list[dict[str, Any]]) -> None:
    """What is told of a device that is not there, and a second end of an order, are not taken."""
    with pytest.raises((AssertionError, KeyError, IndexError)):
        RawLog().add(1, _record(10, *events))


def test_a_late_end_of_an_order_is_taken() -> None:
    """What timed out and was done later has both ends."""
    log = RawLog()
    log.add(1, _record(10, ORDERED, FAILED | {"timed_out": True}, DONE | {"late": True}))
    assert [end["type"] for end in log.orders[256].ends] == [FAILED["type"], DONE["type"]]
