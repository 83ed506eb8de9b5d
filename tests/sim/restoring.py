"""Restores in the simulator: of the whole log in the middle of a run, and of a part of it at the end of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leasehold.events import inputs
from leasehold.projections.fencing import check_token
from leasehold.projections.replay import Replay
from leasehold.projections.sequencer import Sequencer
from leasehold.projections.state import State
from tests.sim.oracle import Oracle
from tests.sim.world import ViolationError

if TYPE_CHECKING:
    from tests.sim.simulation import Simulation

ERA_BITS = 47
"""The simulator's own knowledge of what a token is."""


def restore(sim: Simulation) -> None:
    """The log is written back whole, in a new era. Allocators that are not killed meet it with what they had."""
    if not sim.log.bodies:
        return
    for allocator in sim.allocators:
        if sim.restore_rng.random() < 0.5:
            allocator.kill()
    body = _restored(sim.log.bodies, sim.now_ns, f"restorer.{len(sim.log.bodies)}")
    sim.log.append(len(sim.log.bodies), body)


def _restored(bodies: list[bytes], now_ns: int, writer: str) -> bytes:
    state = _folded(bodies)
    sequencer = Sequencer(state, cluster="sim", writer=writer)
    era = state.head.era + 1
    sequencer.note(inputs.LedgerRestores(cluster="sim", writer=writer, era=era, reason="wiped"))
    draft = sequencer.draft(now_ns)
    assert draft is not None
    return draft.body


def _folded(bodies: list[bytes]) -> State:
    replay = Replay()
    for sequence, body in enumerate(bodies, 1):
        difference = replay.step(sequence, body)
        if difference is not None:
            raise ViolationError(f"replay: {difference}")
    return replay.state


def check_tokens(sim: Simulation, state: State) -> None:
    """No token of an older era is let in, and a host that knows nothing but its floor shuts it out as well.

    Raises:
        ViolationError: one is.
    """
    era = sim.oracle.era
    shown = {held.token for holder in sim.holders for held in holder.held if held.token >> ERA_BITS < era}
    _check_dead(state, shown)


def check_part(sim: Simulation) -> None:
    """Whatever part of the log an archive had: restored from it, the rest is lost, and no token of it opens anything.

    Raises:
        ViolationError: ownership is not as it was at that place, or a token that was given out acts.
    """
    records = sim.restore_rng.randrange(1, len(sim.log.bodies) + 1)
    kept = sim.log.bodies[:records]
    body = _restored(kept, sim.now_ns, "restorer")
    before, after, oracle = _folded(kept), _folded([*kept, body]), Oracle()
    for sequence, each in enumerate([*kept, body], 1):
        oracle.record(sequence, each)
    owners = {device: (row.lease, row.ending) for device, row in before.devices.items()}
    if owners != {device: (row.lease, row.ending) for device, row in after.devices.items()}:
        raise ViolationError(f"restore: ownership at record {records} is not what it was")
    era = oracle.era - 1
    _check_dead(after, {lease | at << ERA_BITS for lease in sim.oracle.leases for at in (0, era)})
    for device, row in after.devices.items():
        token = after.leases[row.lease].token if row.lease else 0
        is_let_in = check_token(after, device, token) is None
        if is_let_in != oracle.may_act(device, token):
            raise ViolationError(f"restore: token {token} at {device} is {'let in' if is_let_in else 'shut out'}")


def _check_dead(state: State, tokens: set[int]) -> None:
    for device, row in state.devices.items():
        for token in tokens:
            if token >= row.floor or check_token(state, device, token) is None:
                raise ViolationError(f"restore: token {token} from before opens {device}, whose floor is {row.floor}")
