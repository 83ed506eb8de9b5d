"""Holders in the simulator who say what they need instead of naming it, and wait; who hand on what they have."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from leasehold.events import inputs, schedule_inputs
from leasehold.events.answers import Answer
from leasehold.events.identities import Holder, Principal, RequestId
from leasehold.events.inputs import Request
from leasehold.events.scheduling import Constraint, Need, Option
from tests.sim.beliefs import check_one_owner
from tests.sim.holders import Held, Sent, counted_ns
from tests.sim.linear import Operation
from tests.sim.patience import is_hopeless
from tests.sim.tenants import SimTenant
from tests.sim.watchers import refused
from tests.sim.wishes import CLASSES, SELECTORS
from tests.sim.world import LEASABLE, SECOND, ViolationError, short

if TYPE_CHECKING:
    from tests.sim.simulation import Simulation

_ACTS: Final = (
    *("wish", "wish", "wish", "look", "look", "look", "keep", "keep", "hand", "hand", "any", "any"),
)
GIVEN: Final = RequestId("given")
WAITS_MS: Final = (0, 5_000, 60_000, 3_600_000, 3_600_000)


@dataclass
class SimScheduler(SimTenant):
    """It asks for one or several things by what they are, alone, with others, or to look at them; and it waits."""

    speaks_of_needs: bool = True
    ttls_ms: tuple[int, ...] = (5_000, 40_000, 80_000, 120_000)
    waits: set[str] = field(default_factory=set)
    """The requests that were answered as waiting."""
    got: list[Held] = field(default_factory=list)
    """What others have given to it, and it has not renewed yet; what it shares, or looks at."""
    reserved: list[Held] = field(default_factory=list)
    """What is to stand in for what it has."""

    def act(self) -> None:
        """One of these, or what any holder does."""
        rng = self.sim.schedule_rng
        living = [held for held in self.held if self._lives(held)]
        match rng.choice(_ACTS):
            case "wish" if len(self._waiting()) < 3:
                self._wish()
            case "look" if self._waiting():
                self._look_after(rng.choice(self._waiting()))
            case "keep" if living or self.got:
                self._renew_many([*living, *self.got])
            case "hand" if living:
                self._hand_on(rng.choice(living))
            case "any":
                super().act()

    def _lives(self, held: Held) -> bool:
        return not held.is_over and held.until_ns > self.sim.now_ns

    def _waiting(self) -> list[Sent]:
        return [sent for sent in self.sent.values() if sent.request.request_id in self.waits and not sent.answer]

    # --- wishes -----------------------------------------------------------------------------------------------------

    def _wish(self) -> None:
        rng = self.sim.schedule_rng
        fields: dict[str, Any] = {
            "holder": Holder(self.name),
            "ttl_ms": rng.choice(self.ttls_ms),
            "host": rng.choice(("", "", "", "h1", "h2")),
            "tolerates": rng.choice(((), (), (), ("drain",), ("flaky=a",), ("*",))),
            "priority": rng.choice((0, 0, 0, 1, -1, 5)),
        }
        if rng.random() < 0.25:
            some = [device for device in rng.choice(self.sim.hosts).ids() if short(device) in LEASABLE]
            fields |= {"devices": tuple(rng.sample(some, rng.choice((1, 1, 2)))), "host": ""}
        else:
            fields |= self._needs()
        if rng.random() < 0.2:
            fields["mode"] = rng.choice(("shared", "shared", "shared", "admin"))
            to_share = [device for device, row in self.sim.oracle.schedule.policies.items() if row[0] > 1]
            if to_share and fields["mode"] == "shared":
                fields |= {"devices": (rng.choice(to_share),), "needs": (), "constraints": (), "host": ""}
        else:
            fields |= self._purpose()
        request = inputs.LeaseRequest(
            request_id=self._id(), issued_at_ns=self.sim.now_ns + self.skew_ns, wait_ms=rng.choice(WAITS_MS), **fields
        )
        operation = None
        if not request.mode:
            operation = Operation("acquire", (), self.sim.now_ns, ttl_ns=counted_ns(request.ttl_ms))
            self.sim.history.append(operation)
        self._send(request, operation)

    def _needs(self) -> dict[str, Any]:
        """One or two of them, with what is to hold across them."""
        rng = self.sim.schedule_rng
        every = rng.random() < 0.1
        needs = [self._need(every=every)] if every or rng.random() < 0.6 else [self._need(), self._need()]
        constraints = []
        if every or rng.random() < 0.5:
            attribute = "host" if every else rng.choice(("host", "iommu_group"))
            constraints.append(Constraint(kind="same", attribute=attribute))
        elif rng.random() < 0.3:
            constraints.append(Constraint(kind="distinct", attribute=rng.choice(("host", "iommu_group"))))
        return {"needs": tuple(needs), "constraints": tuple(constraints)}

    def _need(self, *, every: bool = False) -> Need:
        rng = self.sim.schedule_rng
        if every:
            return Need(select="device.iommu_group == 2", every=True)
        if rng.random() < 0.2:
            return Need(first_of=tuple(self._option() for _ in range(rng.choice((1, 2)))))
        option = self._option()
        return Need(select=option.select, device_class=option.device_class, count=option.count)

    def _option(self) -> Option:
        rng = self.sim.schedule_rng
        count = rng.choice((1, 1, 1, 2, 2, 3))
        if rng.random() < 0.3:
            return Option(device_class=rng.choice((*CLASSES * 6, "unknown")), count=count)
        return Option(select=rng.choice(list(SELECTORS)), count=count)

    def _purpose(self) -> dict[str, Any]:
        """Now and then a domain; never one way to hand devices over, which not all hosts have."""
        purpose = super()._purpose() if self.sim.pollers and self.sim.schedule_rng.random() < 0.3 else {}
        return {name: value for name, value in purpose.items() if name not in ("driver", "unmanaged")}

    # --- waiting ----------------------------------------------------------------------------------------------------

    def _look_after(self, sent: Sent) -> None:
        """Ask how it stands; or do not want it any more, or what another wants."""
        rng = self.sim.schedule_rng
        if rng.random() < 0.85:
            self.sim.submit(self, sent.request)
            return
        others = list(self.sim.oracle.schedule.queue.waiting)
        known = self.sim.oracle.schedule.queue.told.get((self.principal, sent.request.request_id), [])
        if others and rng.random() < 0.2:
            self._withdraw(rng.choice(others))
        elif known:
            self._withdraw(known[0])

    def _withdraw(self, queued: int) -> None:
        self._send(
            schedule_inputs.WithdrawRequest(
                request_id=self._id(), issued_at_ns=self.sim.now_ns + self.skew_ns, queued=queued, reason="not needed"
            )
        )

    # --- handing on -------------------------------------------------------------------------------------------------

    def _renew_many(self, held: list[Held]) -> None:
        rng = self.sim.schedule_rng
        state = self.sim.reader
        for each in held:
            if each in self.got and each.lease in state.leases:
                # Who was given a lease is told its token by who knows: the query service, in life.
                each.token = state.leases[each.lease].token
        tokens = {each.lease: each.token + rng.choice((0,) * 12 + (256,)) for each in held}
        leases = tuple(sorted(tokens.items()))
        self._send(
            schedule_inputs.RenewManyRequest(
                request_id=self._id(), issued_at_ns=self.sim.now_ns + self.skew_ns, leases=leases
            )
        )

    def _hand_on(self, held: Held) -> None:
        """Give it to another; or have something reserved in its place, and then that in place of it."""
        rng = self.sim.schedule_rng
        if held.request.domain and rng.random() < 0.5:
            return
        fields: dict[str, Any] = {
            "request_id": self._id(), "issued_at_ns": self.sim.now_ns + self.skew_ns, "lease": held.lease,
            "token": held.token,
        }  # fmt: skip
        for_it = (each for each in self.reserved if not each.is_over and self._source_of(each) == held.lease)
        reserved = next(for_it, None)
        if reserved is not None and rng.random() < 0.7:
            self._stop_believing(held)
            # Whether and when its lease ends by this is told in no word of its own.
            self.sim.history.append(Operation("release", held.devices, self.sim.now_ns, lease=held.lease))
            fields |= {"lease": reserved.lease, "token": reserved.token}
            self._send(schedule_inputs.SwitchRequest(**fields))
        elif rng.random() < 0.6:
            request = schedule_inputs.ReserveRequest(**fields, ttl_ms=rng.choice(self.ttls_ms), **self._needs())
            operation = Operation("acquire", (), self.sim.now_ns, ttl_ns=counted_ns(request.ttl_ms))
            self.sim.history.append(operation)
            self._send(request, operation)
        else:
            to = rng.choice([each for each in self.sim.holders if isinstance(each, SimScheduler)])
            principal = to.principal if to.principal != self.principal or rng.random() < 0.5 else ""
            self._stop_believing(held)
            fields |= {"holder": Holder(to.name), "principal": Principal(principal)}
            self._send(schedule_inputs.TransferRequest(**fields))

    def _source_of(self, reserved: Held) -> int:
        return getattr(reserved.request, "lease", 0)

    def _stop_believing(self, held: Held) -> None:
        """Before it says that it has it no more: what comes of that it may never hear."""
        held.is_over = True
        self.let_go(held)

    def receive(self, lease: int, devices: tuple[str, ...], ttl_ms: int) -> None:
        """Another has given it a lease; it counts on it once it has renewed it."""
        request = inputs.LeaseRequest(
            request_id=GIVEN, issued_at_ns=0, devices=(), holder=Holder(self.name), ttl_ms=ttl_ms
        )
        self.got.append(Held(lease, 0, devices, 0, ttl_ms, request))

    def has(self) -> list[Held]:
        """What was given to it, and what is reserved for it, too."""
        return [*self.held, *self.got, *self.reserved]

    def _others_requests(self) -> list[Request]:
        """But none that would wait, be shared or looked at: who takes another's words expects nothing of that."""
        return [
            request
            for request in super()._others_requests()
            if not isinstance(request, inputs.LeaseRequest) or not (request.wait_ms or request.mode)
        ]

    # --- answers ----------------------------------------------------------------------------------------------------

    def take(self, request: Request, answer: Answer) -> None:
        """As any holder, but that what waits is answered in several ways, one after the other."""
        sent = self.sent[request.request_id]
        told = self.sim.oracle.schedule.queue.told.get((self.principal, request.request_id))
        if isinstance(request, schedule_inputs.RenewManyRequest):
            self._take_renewals(sent, answer)
        elif isinstance(request, inputs.LeaseRequest) and told is not None and request == sent.request:
            self._take_while_waiting(sent, answer, told)
        else:
            super().take(request, answer)

    def _ask_for_token(self, request: Request) -> None:
        """Of what was given to it there is no request of its own: it looks."""
        for held in self.held:
            row = self.sim.reader.leases.get(held.lease)
            if row is not None and held.request.request_id == GIVEN and held.lease == getattr(request, "lease", 0):
                held.token = row.token
        super()._ask_for_token(request)

    def _take_while_waiting(self, sent: Sent, answer: Answer, told: list[int]) -> None:
        if refused(answer, "request_too_old"):
            return
        _must(answer.position in told, "kept", f"answered {answer.position}, but of this is known {told}")
        if answer.outcome == "queued":
            _must(answer.position == told[0], "queue", f"it waits at {told[0]}, not {answer.position}")
            if sent.answer is not None:
                # Another copy of the question may have been answered before, and that be heard only now.
                is_late = self.asked_ns <= sent.answered_ns
                _must(is_late, "once", f"{sent.request.request_id} waits after {sent.answer}")
                return
            # It had nothing when this was asked; so whatever it is given begins later.
            self.waits.add(sent.request.request_id)
            sent.at_ns = max(sent.at_ns, self.asked_ns)
            return
        _must(len(told) == 2 and answer.position == told[1], "queue", f"{answer.outcome} at {answer.position}: {told}")
        if sent.answer is not None:
            self._take_token(answer)
            return
        sent.answer, sent.answered_ns = answer, self.sim.now_ns
        self._believe(sent, answer)

    def _believe(self, sent: Sent, answer: Answer) -> None:
        request = sent.request
        if sent.operation is not None and answer.outcome == "granted":
            sent.operation.devices = answer.devices
        if isinstance(request, inputs.LeaseRequest) and answer.outcome == "granted" and request.mode:
            self.got.append(Held(answer.lease, answer.token, answer.devices, 0, request.ttl_ms, request))
            return
        if isinstance(request, schedule_inputs.ReserveRequest) and answer.outcome == "granted":
            if sent.operation is not None:
                sent.operation.finish(self.sim.now_ns, ok=True, lease=answer.lease)
            it = (answer.lease, answer.token, answer.devices, 0, request.ttl_ms, request)
            self.reserved.append(Held(*it))  # type: ignore[arg-type]
            return
        if isinstance(request, schedule_inputs.SwitchRequest) and answer.outcome == "switched":
            for held in self.reserved:
                if held.lease == request.lease and not held.is_over:
                    held.is_over = True
                    self.receive(held.lease, held.devices, held.ttl_ms)
        super()._believe(sent, answer)

    def _take_renewals(self, sent: Sent, answer: Answer) -> None:
        if sent.answer is not None:
            return
        sent.answer = answer
        if answer.outcome == "refused":
            return
        asked = dict(sent.request.leases)  # type: ignore[union-attr]
        for lease in answer.leases:
            _must(lease in asked, "renewal", f"{lease} was renewed, but nobody wanted that")
        for held in [*self.held, *self.got]:
            if held.lease in answer.leases and held.token == asked[held.lease] and not held.is_over:
                held.until_ns = max(held.until_ns, sent.at_ns + counted_ns(held.ttl_ms))
                if held in self.got and not getattr(held.request, "mode", ""):
                    self.got.remove(held)
                    self.held.append(held)
                    check_one_owner(self.sim.holders, self.sim.now_ns)

    # --- the end ----------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Wait for what is to be had, and give back all that it has."""
        super().settle()
        # From here on by the ledger's own time, so that nothing is refused as too early.
        self.skew_ns = self.sim.reader.head.decided_at_ns - self.sim.now_ns
        if self.sim.now_ns > self.sim.healed_ns + 60 * SECOND:
            for queued, waiting in list(self.sim.oracle.schedule.queue.waiting.items()):
                if waiting.principal == self.principal and is_hopeless(self.sim.oracle, queued):
                    self._withdraw_once(queued)
        for held in [*self.got, *self.reserved]:
            row = self.sim.reader.leases.get(held.lease)
            if not held.is_over and row is not None and not row.ended:
                held.token = row.token
                held.is_over = True
                self.sim.history.append(Operation("release", held.devices, self.sim.now_ns, lease=held.lease))
                self._send(
                    inputs.ReleaseRequest(
                        request_id=self._id(), issued_at_ns=self.sim.now_ns + self.skew_ns, lease=held.lease,
                        token=held.token,
                    )
                )  # fmt: skip

    def _withdraw_once(self, queued: int) -> None:
        open_requests = (sent.request for sent in self.sent.values() if sent.answer is None)
        if not any(getattr(each, "queued", 0) == queued for each in open_requests):
            self._withdraw(queued)


def tell_of_transfers(sim: Simulation, body: bytes) -> None:
    """Who was given a lease hears of it."""
    if b"lease_transferred" not in body:
        return
    for step in json.loads(body)["steps"]:
        for event in step["events"]:
            row = sim.reader.leases.get(event["lease"]) if event["type"].startswith("lease_transferred") else None
            for holder in sim.holders:
                if row is not None and isinstance(holder, SimScheduler) and holder.name == event["holder"]:
                    holder.receive(event["lease"], tuple(row.devices), row.ttl_ms)


def _must(holds: bool, promise: str, text: str) -> None:
    if not holds:
        raise ViolationError(f"{promise}: {text}")
