"""Nobody waits for what he could have, and nobody waits for ever: whatever happens meanwhile, and whoever asks."""

import random
from collections.abc import Iterator
from typing import Any

import pytest

from leasehold.events import inputs, limits
from leasehold.events.event_types import Event, LeaseGranted
from leasehold.events.identities import DeviceId, DeviceKey, Holder, Principal
from leasehold.events.refusals import RefusalCode
from leasehold.events.schedule_events import QueuedMoved, QueueLooked
from leasehold.events.schedule_inputs import SetQuotaRequest, WithdrawRequest
from leasehold.events.scheduling import Constraint, Need, Option
from leasehold.projections import evolve, stirring, waiting
from leasehold.projections.indexes import EVERYBODY
from leasehold.projections.snapshots import decode_state, encode_state
from leasehold.projections.state import State
from tests.projections.ledger import H1, SECOND, A, B, Ledger, device, ledger_with_hosts, pci
from tests.scheduling import words
from tests.scheduling.queues import MODEL, check_queue, folds_alike, gpu, gpu_names, gpus, ledger_with_gpus, settle

PRINCIPALS = (A, B, Principal("c@lab"))
GPUS = 6
NAMES = (*gpu_names(range(GPUS)), "03:00.0", "03:10.0", "03:10.1", "02:00.0", "02:00.1")


class World:
    """Random things happen to one ledger, one after the other."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.ledger = ledger_with_hosts()
        # Two of them share an IOMMU group, the others do not.
        self.ledger.see(*(gpu(number, iommu_group=100 + max(number, 1)) for number in range(GPUS)))
        self._gone: list[DeviceKey] = []

    def step(self) -> None:
        """One of all that can happen."""
        self.ledger.now_ns += self.rng.randint(0, 2 * SECOND)
        name = self.rng.choice(NAMES)
        happenings = (
            [self._ask] * 6 + [self._release] * 4 + [self._withdraw, self._vanish, self._come_back, self._change]
            + [self._mark, self._unmark, self._quota]
        )  # fmt: skip
        self.rng.choice(happenings)(name)

    def _ask(self, name: str) -> None:
        rng = self.rng
        fields: dict[str, Any] = {
            "holder": Holder(f"vm{rng.randint(0, 3)}"),
            "wait_ms": rng.choice((0, 5_000, 600_000)),
            "priority": rng.choice((0, 0, 0, 1, -1)),
            "ttl_ms": rng.choice((5_000, 60_000)),
        }
        kind = rng.random()
        if kind < 0.4:
            chosen = rng.sample(NAMES, rng.randint(1, 3))
            self.ledger.lease(*chosen, principal=rng.choice(PRINCIPALS), **fields)
            return
        if kind < 0.7:
            fields |= gpus(rng.randint(1, 4))
        elif kind < 0.8:
            fields["needs"] = (Need(select=MODEL, count=1, every=True),)
        else:
            options = (Option(select=f'{MODEL} && device.driver == "vfio-pci"', count=2), Option(select=MODEL))
            fields["needs"] = (Need(first_of=options),)
            if rng.random() < 0.5:
                fields["constraints"] = (Constraint(kind="same", attribute="host"),)
        fields.pop("devices", None)
        self.ledger.lease(principal=rng.choice(PRINCIPALS), **fields)

    def _release(self, _name: str) -> None:
        living = [lease for lease, row in sorted(self.ledger.state.leases.items()) if not row.ended]
        if living:
            lease = self.rng.choice(living)
            self.ledger.release(lease, self.ledger.state.leases[lease].principal)

    def _withdraw(self, _name: str) -> None:
        if self.ledger.state.queue:
            place = self.rng.choice(sorted(self.ledger.state.queue))
            given: dict[str, Any] = {"request_id": self.ledger.new_id(), "issued_at_ns": self.ledger.now_ns}
            request = WithdrawRequest(**given, queued=place)
            self.ledger.ask(request, self.ledger.state.queue[place].principal)

    def _vanish(self, name: str) -> None:
        self.ledger.observe(inputs.DeviceGone(DeviceKey(f"pci/0000:{name}")))

    def _come_back(self, name: str) -> None:
        self.ledger.see(self.ledger.state.devices[device(name)].description)

    def _change(self, name: str) -> None:
        self.ledger.change(name, driver=self.rng.choice(("", "vfio-pci")), in_use_by=self.rng.choice(((), ("x",))))

    def _mark(self, name: str) -> None:
        self.rng.choice((words.cordon, words.taint))(self.ledger, **self._target(name))

    def _unmark(self, name: str) -> None:
        self.rng.choice((words.uncordon, words.untaint))(self.ledger, **self._target(name))

    def _target(self, name: str) -> dict[str, Any]:
        return {"host": "h1"} if self.rng.random() < 0.1 else {"device": device(name)}

    def _quota(self, _name: str) -> None:
        given: dict[str, Any] = {"request_id": self.ledger.new_id(), "issued_at_ns": self.ledger.now_ns}
        tenant = Principal(self.rng.choice(("a", "b", "lab")))
        self.ledger.ask(SetQuotaRequest(**given, tenant=tenant, devices_max=self.rng.choice((-1, 1, 3))), words.OPS)

    def calm(self) -> None:
        """All that can be decided now is decided."""
        settle(self.ledger)


def looked_at_all(state: State, now_ns: int) -> list[Event]:
    """What would come of it if all who wait were looked at now."""
    copy = decode_state(encode_state(state))
    assert copy is not None
    position = copy.head.sequence * 256 + 256
    stirring.stir(copy, position, EVERYBODY)
    found: list[Event] = []
    while copy.stirred:
        for event in waiting.looked(copy, now_ns):
            position += 1
            evolve.evolve(copy, position, now_ns, event)
            if not isinstance(event, QueueLooked):
                found.append(event)
    return found


def is_other(state: State, event: Event) -> bool:
    """Whether somebody gets something by it, or keeps what he may not have: which of equal devices are kept for him may
    differ, and so may the reason that he is told. What is kept for him stays so while somebody before him keeps what
    is tied to it.
    """
    if not isinstance(event, QueuedMoved):
        return True
    had = bool(state.queue[event.queued].keeps)
    over_quota = event.why and event.why.code == RefusalCode.QUOTA_EXCEEDED
    return (bool(event.keeps) and not had) or bool(had and not event.keeps and over_quota)


@pytest.mark.parametrize("batch", range(4))
def test_nobody_waits_for_what_he_could_have(batch: int) -> None:
    """When all is decided, looking at everybody once more gives nobody anything: what is new was told to all whom it
    concerns. What is derived holds, and the log folds to it by any way.
    """
    waited = granted = 0
    for seed in range(batch * 15, batch * 15 + 15):
        world = World(seed)
        for number in range(60):
            world.step()
            if number % 3 == 0:
                world.calm()
                state = world.ledger.state
                check_queue(state)
                waited += len(state.queue)
                more = looked_at_all(state, world.ledger.now_ns)
                assert not [each for each in more if is_other(state, each)], f"seed {seed}, step {number}: {more}"
            granted += any(isinstance(event, LeaseGranted) and event.queued for event in world.ledger.events)
        if seed % 15 == 0:
            folds_alike(world.ledger)
    print(f"seeds {batch * 15} to {batch * 15 + 14}: {waited} waited, {granted} records granted some of them")
    assert waited > 200
    assert granted > 20
