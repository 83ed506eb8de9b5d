"""An operator in the simulator who says what may be had by whom: classes, quotas, cordons, taints, drains, policies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from leasehold.events import inputs, schedule_inputs
from leasehold.events.identities import Principal
from tests.sim.holders import SimHolder
from tests.sim.wishes import CLASSES, SELECTORS
from tests.sim.world import LEASABLE, SECOND, short

_SETTLE_S: Final = 5
_ACTS: Final = (
    *("nothing",) * 16,
    *("class", "quota", "quota", "cordon", "taint", "taint", "drain", "policy", "policy", "policy"),
    *("lift",) * 6,
    *("clean", "clean", "heal", "withdraw", "remove"),
)


@dataclass
class SimSteward(SimHolder):
    """It changes its mind often, and in the end takes back all that keeps devices from being had."""

    settled_ns: int = 0
    has_begun: bool = False

    def act(self) -> None:
        """One of these, now and then."""
        rng = self.sim.schedule_rng
        if not self.has_begun and self.sim.reader.devices:
            self._begin()
        match rng.choice(_ACTS):
            case "class":
                self._say(
                    schedule_inputs.SetClassRequest, name=rng.choice(CLASSES), select=rng.choice(list(SELECTORS))
                )
            case "remove":
                self._say(schedule_inputs.RemoveClassRequest, name=rng.choice(CLASSES))
            case "quota":
                self._say(
                    schedule_inputs.SetQuotaRequest, tenant=Principal(rng.choice(("a", "b"))),
                    device_class=rng.choice(("", *CLASSES)), devices_max=rng.choice((-1, 0, 1, 2, 3, 5)),
                )  # fmt: skip
            case "cordon":
                self._say(schedule_inputs.CordonRequest, reason="it smells", **self._target())
            case "taint":
                effect = rng.choice(("no_grant", "no_grant", "evict"))
                self._say(
                    schedule_inputs.TaintRequest, name="flaky", value=rng.choice(("", "a", "b")), reason="it flickers",
                    effect=effect, notice_ms=rng.choice((0, 20_000)) if effect == "evict" else 0, **self._target(),
                )  # fmt: skip
            case "drain":
                self._say(
                    schedule_inputs.TaintRequest, name="drain", reason="a new kernel", effect="evict",
                    notice_ms=rng.choice((0, 0, 10_000)), **self._target(),
                )  # fmt: skip
            case "policy":
                self._say(
                    schedule_inputs.SetPolicyRequest, device=rng.choice(rng.choice(self.sim.hosts).ids()),
                    share_max=rng.choice((1, 2, 2, 3)), clean=rng.random() < 0.4,
                )  # fmt: skip
            case "withdraw":
                self._withdraw()
            case "nothing":
                pass
            case what:
                self._take_back(what, some=True)

    def _begin(self) -> None:
        """Have it be as in a house where somebody has thought about it: classes, and things that may be shared."""
        rng, self.has_begun = self.sim.schedule_rng, True
        for name in CLASSES:
            self._say(schedule_inputs.SetClassRequest, name=name, select=rng.choice(list(SELECTORS)[:4]))
        for device in self.sim.reader.devices:
            if short(device) in LEASABLE and rng.random() < 0.3:
                self._say(schedule_inputs.SetPolicyRequest, device=device, share_max=2, clean=rng.random() < 0.3)

    def _say(self, kind: type[Any], **fields: Any) -> None:
        # By the ledger's own time, so that what it says in the end is not refused as too early.
        now_ns = self.sim.reader.head.decided_at_ns
        self._send(kind(request_id=self._id(), issued_at_ns=now_ns, **fields))

    def _target(self) -> dict[str, str]:
        rng = self.sim.schedule_rng
        host = rng.choice(self.sim.hosts)
        return {"host": host.name} if rng.random() < 0.15 else {"device": rng.choice(host.ids())}

    def _withdraw(self) -> None:
        waiting = list(self.sim.oracle.schedule.queue.waiting)
        if waiting:
            queued = self.sim.schedule_rng.choice(waiting)
            self._say(inputs.RevokeRequest, lease=queued, reason="it is needed elsewhere")

    def _take_back(self, what: str, *, some: bool) -> None:
        """Lift marks, say that something was cleaned or works again: of all, or of some one thing."""
        rng, book = self.sim.schedule_rng, self.sim.oracle.schedule
        says: list[tuple[type[Any], dict[str, Any]]] = []
        if what == "lift":
            says += [(schedule_inputs.UncordonRequest, _named(each)) for each in sorted(book.cordons)]
            says += [
                (schedule_inputs.UntaintRequest, {"name": name, **_named(each)})
                for each, names in sorted(book.taints.items())
                for name in sorted(names)
            ]
        elif what == "clean":
            says += [
                (schedule_inputs.ConfirmCleanRequest, {"device": each, "reason": "wiped"})
                for each in sorted(book.unclean)
            ]
        elif what == "heal":
            says += [
                (schedule_inputs.HealRequest, {"device": each, "reason": "a new fan"}) for each in sorted(book.sick)
            ]
        for kind, fields in [rng.choice(says)] if says and some else says:
            self._say(kind, **fields)

    def settle(self) -> None:
        """Nothing is kept from anybody any more."""
        if self.sim.now_ns - self.settled_ns < _SETTLE_S * SECOND:
            return
        self.settled_ns = self.sim.now_ns
        for what in ("lift", "clean", "heal"):
            self._take_back(what, some=False)
        if self.sim.now_ns < self.sim.healed_ns + 60 * SECOND:
            return  # who has given back what he had gets other things in spite of them
        for tenant, device_class in sorted(self.sim.oracle.schedule.quotas):
            self._say(
                schedule_inputs.SetQuotaRequest, tenant=Principal(tenant), device_class=device_class, devices_max=-1
            )


def _named(target: str) -> dict[str, str]:
    return {"device": target} if "/" in target else {"host": target}
