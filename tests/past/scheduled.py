"""Random logs of what schedulers and operators ask: who waits, shares, hands on, and is kept away by a word."""

import random
from typing import Any, Final

from leasehold.events import inputs, schedule_inputs
from leasehold.events.identities import DeviceId, Holder, Principal, split_device_id
from leasehold.events.scheduling import Constraint, Need, Option
from leasehold.projections import marking
from tests.past import handed
from tests.projections.ledger import H1, H2, A, B, Ledger, device, ledger_with_hosts

STEPS: Final = 220
PLACES: Final = ("01:00.0", "03:00.0", "03:10.0", "03:10.1", "2-1.1", "2-2", "0a:00.0", "02:00.0")
ON_BOTH: Final = (*(device(text) for text in PLACES), device("01:00.0", H2), device("0b:00.0", H2))
CLASSES: Final = {
    "nic": 'device.vendor == "8086"',
    "fast": 'device.pci.address == "0000:0a:00.0"',
    "usb": 'device.kind == "usb_device"',
}
DOMAIN: Final = "c0ffee00-0000-4000-8000-000000000001"
HOLDERS: Final = (Holder("vm"), Holder("ci"), Holder("job-7"))


class _Log:
    """A ledger with two hosts, of which one is managed; what is asked is drawn by chance."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.ledger = ledger_with_hosts()
        self.ledger.start_binder(H1)
        self.hands = handed.Hands(self.rng, self.ledger)

    def ask(self, kind: type[Any], by: Principal = B, /, **fields: Any) -> None:
        """What is refused is as good as what is not: it stands in the log, too."""
        said = {"request_id": self.ledger.new_id(), "issued_at_ns": self.ledger.now_ns, **fields}
        self.ledger.ask(kind(**said), by)

    def some(self) -> DeviceId:
        return self.rng.choice(ON_BOTH)

    def living(self) -> list[int]:
        return [lease for lease, row in self.ledger.state.leases.items() if not row.ended]

    # --- schedulers

    def lease(self) -> None:
        rng = self.rng
        wanted: dict[str, Any] = {"devices": tuple(rng.sample(ON_BOTH, rng.choice((1, 1, 2, 3))))}
        if rng.random() < 0.4:
            wanted = {"needs": self._needs()}
            if rng.random() < 0.3:
                attribute = rng.choice(("host", "vendor", "key"))
                wanted["constraints"] = (Constraint(kind=rng.choice(("same", "distinct")), attribute=attribute),)
        terms = {
            "mode": rng.choice(("", "", "", "shared", "admin")),
            "domain": "",
            "tolerates": rng.choice(((), (), ("slow",), ("*",))),
            "wait_ms": rng.choice((0, 30_000, 300_000)),
            "priority": rng.randrange(-2, 3),
        }
        if not terms["mode"] and rng.random() < 0.4:
            terms |= {"domain": DOMAIN, "keep": rng.random() < 0.5}
        holder, principal = rng.choice(HOLDERS), rng.choice((A, B))
        self.ask(inputs.LeaseRequest, principal, holder=holder, ttl_ms=60_000, **wanted, **terms)

    def _needs(self) -> tuple[Need, ...]:
        rng = self.rng
        needs = [Need(device_class=rng.choice(sorted(CLASSES)), count=rng.choice((1, 1, 2)))]
        if rng.random() < 0.4:
            options = tuple(Option(device_class=each) for each in rng.sample(sorted(CLASSES), 2))
            needs.append(Need(first_of=options))
        return tuple(needs)

    def hand_on(self) -> None:
        living = self.living()
        if not living:
            return
        lease = self.rng.choice(living)
        row = self.ledger.state.leases[lease]
        about: dict[str, Any] = {"lease": lease, "token": row.token}
        draw = self.rng.random()
        if draw < 0.3:
            about |= {"holder": self.rng.choice(HOLDERS), "principal": self.rng.choice((A, B))}
            self.ask(schedule_inputs.TransferRequest, row.principal, **about)
        elif draw < 0.5:
            self.ask(schedule_inputs.ReserveRequest, row.principal, devices=(self.some(),), ttl_ms=60_000, **about)
        elif draw < 0.65:
            self.ask(schedule_inputs.SwitchRequest, row.principal, **about)
        elif draw < 0.8:
            many = [each for each in living if self.ledger.state.leases[each].principal == row.principal]
            tokens = tuple((each, self.ledger.state.leases[each].token) for each in many)
            self.ask(schedule_inputs.RenewManyRequest, row.principal, leases=tokens)
        else:
            self.ask(inputs.ReleaseRequest, row.principal, **about)

    def withdraw(self) -> None:
        for queued, row in list(self.ledger.state.queue.items()):
            if self.rng.random() < 0.2:
                self.ask(schedule_inputs.WithdrawRequest, row.principal, queued=queued)

    # --- operators

    def mark(self) -> None:
        rng = self.rng
        where = {"device": self.some()} if rng.random() < 0.8 else {"host": rng.choice((H1, H2))}
        kind, fields = rng.choice(
            (
                (schedule_inputs.CordonRequest, {"reason": "the fan is loud"}),
                (schedule_inputs.TaintRequest, {"name": "slow", "reason": "old", "value": rng.choice(("", "x4"))}),
                (
                    schedule_inputs.TaintRequest,
                    {"name": "drain", "reason": "new fans", "effect": "evict", "notice_ms": rng.choice((0, 20_000))},
                ),
            )
        )
        self.ask(kind, **where, **fields)

    def unmark(self) -> None:
        """What was said last of some host or device is taken back."""
        views, _ = marking.taint_views(self.ledger.state, limit=100)
        if not views:
            return
        view = self.rng.choice(views)
        where = {"device" if "/" in view.target else "host": view.target}
        if view.kind == marking.CORDON:
            self.ask(schedule_inputs.UncordonRequest, **where)
        else:
            self.ask(schedule_inputs.UntaintRequest, name=view.name, **where)

    def treat(self) -> None:
        """A policy is said, or a device is cleaned or healed."""
        rng, state = self.rng, self.ledger.state
        dirty = [each for each, row in state.devices.items() if row.marks is not None and row.marks.unclean_position]
        failing = [each for each, row in state.devices.items() if row.marks is not None and row.marks.failures]
        draw = rng.random()
        if draw < 0.3 and dirty:
            self.ask(schedule_inputs.ConfirmCleanRequest, device=rng.choice(dirty), reason="wiped")
        elif draw < 0.6 and failing:
            self.ask(schedule_inputs.HealRequest, device=rng.choice(failing), reason="a new cable")
        else:
            clean, shares = rng.random() < 0.3, rng.choice((1, 2, 3))
            self.ask(schedule_inputs.SetPolicyRequest, device=self.some(), share_max=shares, clean=clean)

    def name(self) -> None:
        rng = self.rng
        name = rng.choice(sorted(CLASSES))
        draw = rng.random()
        if draw < 0.7:
            self.ask(schedule_inputs.SetClassRequest, name=name, select=CLASSES[name])
        elif draw < 0.73:
            self.ask(schedule_inputs.RemoveClassRequest, name=name)
        else:
            about = {"tenant": rng.choice((A, B)), "devices_max": rng.choice((-1, 1, 3))}
            self.ask(schedule_inputs.SetQuotaRequest, device_class=rng.choice(("", name)), **about)

    def lose(self) -> None:
        """A device goes away, or comes back."""
        gone = [each for each in ON_BOTH if self.ledger.state.devices[each].missing]
        chosen = self.rng.choice(gone) if gone and self.rng.random() < 0.8 else self.some()
        host, key = split_device_id(chosen)
        row = self.ledger.state.devices[chosen]
        word = inputs.DeviceSeen(row.description) if row.missing else inputs.DeviceGone(key)
        self.ledger.observe(word, host=host)

    def wait(self) -> None:
        for _ in range(4):
            self.ledger.tick(self.rng.choice((0, 0, 1, 6, 25)))


def random_log(seed: int, *, steps: int = STEPS) -> Ledger:
    """A log of a managed and a watched host."""
    log = _Log(seed)
    for name, select in CLASSES.items():
        log.ask(schedule_inputs.SetClassRequest, name=name, select=select)
    for chosen in ON_BOTH[::2]:
        log.ask(schedule_inputs.SetPolicyRequest, device=chosen, share_max=2)
    often = (log.lease, log.lease, log.wait, log.hands.prepare, log.hands.take_back, log.hands.take_back, log.hand_on)
    ways = (*often * 2, log.withdraw, log.mark, log.unmark, log.treat, log.treat, log.name, log.lose)
    for _ in range(steps):
        log.rng.choice(ways)()
    return log.ledger
