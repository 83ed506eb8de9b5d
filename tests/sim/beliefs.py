"""What holders believe, each by its own clock, held against what the log has done."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from leasehold.events import limits
from tests.sim.world import ViolationError

if TYPE_CHECKING:
    from tests.sim.holders import Held, SimHolder
    from tests.sim.simulation import Simulation

GRACE_NS = 30 * 10**9
DRIFT_DIVISOR = 1_000
"""The log's time may gain on real time by one part in this."""


def check_one_owner(holders: list[SimHolder], now_ns: int) -> None:
    """No two holders believe at once to have one device.

    Raises:
        ViolationError: two do.
    """
    believed: dict[str, int] = {}
    for holder in holders:
        for held in holder.held:
            if held.is_over or held.until_ns <= now_ns:
                continue
            for device in held.devices:
                other = believed.setdefault(device, held.lease)
                if other != held.lease:
                    raise ViolationError(f"one owner: {device} is believed to be {other}'s and {held.lease}'s")


def check_expiries(sim: Simulation, body: bytes) -> None:
    """No lease ends before its holder's own clock says so, nor soon after we could not have been reached.

    Raises:
        ViolationError: one did.
    """
    if b"lease_expired" not in body:
        return
    record = json.loads(body)
    expired = {
        event["lease"]
        for step in record["steps"]
        for event in step["events"]
        if event["type"].startswith("lease_expired")
    }
    _check_touch(sim, record)
    for holder in sim.holders:
        for held in holder.held:
            if held.lease in expired and not held.is_over and held.until_ns > sim.now_ns:
                _ended_early(sim, held)


_CUT_SHORT: Final = ("lease_outlived", "lease_revoked", "prepare_failed")


def note_cut_short(sim: Simulation, body: bytes) -> None:
    """Who had a lease that ends before its time, by what the holder cannot count, hears of it: with its domain, by an
    operator, because it could not be handed over, or with all others for the domain.
    """
    if not any(kind.encode() in body for kind in (*_CUT_SHORT, "reattach.v1")):
        return
    for step in json.loads(body)["steps"]:
        reattaches = step["input"].get("request", {}).get("type") == "reattach.v1"
        for event in step["events"]:
            kind = event["type"].partition(".")[0]
            lease = sim.reader.leases.get(event.get("lease", 0))
            if kind == "lease_revoked" and lease is not None and lease.ended:
                continue  # only what domains still have of it is taken
            if kind in _CUT_SHORT or (reattaches and kind == "lease_released"):
                _cut_short(sim, event["lease"])


def _cut_short(sim: Simulation, lease: int) -> None:
    sim.cut_short.add(lease)
    for holder in sim.holders:
        for held in holder.has():
            if held.lease == lease:
                held.is_over, held.until_ns = True, 0
                holder.let_go(held)


def _check_touch(sim: Simulation, record: dict[str, Any]) -> None:
    """The writer has been within reach for a whole grace time."""
    for allocator in sim.allocators:
        sequencer = allocator.sequencer
        if sequencer is not None and sequencer.writer == record["writer"]:
            grace_ns = allocator.drafted_ns - allocator.in_touch_since_ns
            if grace_ns < GRACE_NS - GRACE_NS // DRIFT_DIVISOR - limits.CLOCK_TOLERANCE_NS:
                raise ViolationError(f"grace: expired {grace_ns // 10**6} ms after {sequencer.writer} was out of reach")


def _ended_early(sim: Simulation, held: Held) -> None:
    """One case is left open: a time to live beyond the bound, a new clock, and a server that has stepped forward."""
    early_ns = held.until_ns - sim.now_ns
    if held.ttl_ms <= limits.NEW_CLOCK_GRACE_MS_MAX or early_ns > sim.server.forward_ns:
        text = f"lease {held.lease} ended {early_ns // 10**6} ms before its holder's time"
        raise ViolationError(f"expiry: {text}; the server has stepped forward by {sim.server.forward_ns // 10**6} ms")
    sim.left_open += 1
    held.is_over = True
    sim.holder_of(held).let_go(held)
    for operation in sim.history:
        if operation.kind == "acquire" and operation.lease == held.lease:
            operation.ttl_ns = 0
    held.until_ns = 0
