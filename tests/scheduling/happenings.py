"""Random things that happen to a ledger in which requests wait; run as a program, it prints the hash of each record."""

import hashlib
import random
import sys
from typing import Any

from leasehold.events import inputs
from leasehold.events.identities import DeviceKey, Holder, Principal
from leasehold.events.schedule_inputs import SetQuotaRequest, WithdrawRequest
from leasehold.events.scheduling import Constraint, Need, Option
from leasehold.projections.snapshots import encode_state
from tests.projections.ledger import SECOND, A, B, device, ledger_with_hosts
from tests.scheduling import words
from tests.scheduling.queues import MODEL, gpu, gpu_names, gpus, settle

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


def main() -> int:
    """Print what must not depend on the process."""
    world = World(7)
    for _ in range(150):
        world.step()
        world.calm()
    for number, body in enumerate(world.ledger.bodies, 1):
        print(number, hashlib.sha256(body).hexdigest())
    print(hashlib.sha256(encode_state(world.ledger.state)).hexdigest(), len(world.ledger.state.queue))
    return 0


if __name__ == "__main__":
    sys.exit(main())
