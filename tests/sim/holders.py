"""Holders in the simulator: impatient, forgetful, and sometimes dishonest. What they are told, they judge."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from leasehold.events import inputs
from leasehold.events.answers import Answer
from leasehold.events.identities import DeviceId, Holder, RequestId, split_device_id
from leasehold.events.inputs import Request
from tests.sim.beliefs import check_one_owner
from tests.sim.clocks import margin_ns
from tests.sim.linear import Operation
from tests.sim.watchers import refused
from tests.sim.world import SECOND, ViolationError

if TYPE_CHECKING:
    from tests.sim.simulation import Simulation


@dataclass
class Held:
    """A lease as its holder believes in it: its TTL counts from the moment the request was sent."""

    lease: int
    token: int
    devices: tuple[str, ...]
    until_ns: int
    ttl_ms: int
    request: inputs.LeaseRequest | inputs.PrepareRequest
    is_over: bool = False


@dataclass
class Sent:
    """A request that was sent, and perhaps sent again."""

    request: Request
    at_ns: int
    operation: Operation | None = None
    answer: Answer | None = None
    answered_ns: int = 0
    """When the last answer came of one that waited."""
    is_unwritten: bool = False
    """It was answered, although there is no word of it in the log."""


@dataclass
class SimHolder:
    """One holder of one principal."""

    sim: Simulation
    principal: str
    name: str
    sent: dict[str, Sent] = field(default_factory=dict)
    held: list[Held] = field(default_factory=list)
    count: int = 0
    is_lazy: bool = False
    """It hardly renews or releases, and trusts in time."""
    ttls_ms: tuple[int, ...] = (2_000, 10_000, 40_000, 80_000, 120_000)
    speaks_of_needs: bool = False
    asked_ns: int = 0
    """When that was asked which is being answered."""
    skew_ns: int = 0
    """What its clock is beside the truth: it writes down by it when it asked, and counts nothing on it."""

    def act(self) -> None:
        """Do one thing: ask, ask again, renew, release, misbehave, use a device or let go of one."""
        rng = self.sim.rng
        living = [held for held in self.held if not held.is_over and held.until_ns > self.sim.now_ns]
        open_requests = [sent for sent in self.sent.values() if sent.answer is None]
        choice = rng.random()
        if open_requests and choice < 0.35:
            self.sim.submit(self, rng.choice(open_requests).request)
        elif living and choice < 0.55:
            if not self.is_lazy:
                self._renew(rng.choice(living))
        elif living and choice < (0.57 if self.is_lazy else 0.68):
            self.release(rng.choice(living))
        elif choice < 0.72:
            self._misbehave()
        elif choice < 0.76:
            self._take_anothers_words()
        elif living and choice < 0.88:
            self._use_or_leave(rng.choice(living))
        elif len(open_requests) < 3:
            self._lease()

    def _id(self) -> RequestId:
        self.count += 1
        return RequestId(f"{self.name}-{self.count}")

    def _send(self, request: Request, operation: Operation | None = None) -> None:
        self.sent[request.request_id] = Sent(request, self.sim.now_ns, operation)
        self.sim.submit(self, request)

    def _lease(self) -> None:
        rng = self.sim.rng
        devices = self._choice()
        request = inputs.LeaseRequest(
            request_id=self._id(),
            issued_at_ns=self.sim.now_ns + self.skew_ns,
            devices=devices,
            holder=Holder(self.name),
            ttl_ms=rng.choice(self.ttls_ms),
            **self._purpose(),
        )
        operation = Operation("acquire", devices, self.sim.now_ns, ttl_ns=counted_ns(request.ttl_ms))
        self.sim.history.append(operation)
        self._send(request, operation)

    def _choice(self) -> tuple[DeviceId, ...]:
        """What to ask for."""
        rng = self.sim.rng
        host = rng.choice(self.sim.hosts)
        return tuple(rng.sample(host.ids(), rng.choice((1, 1, 1, 2))))

    def _purpose(self) -> dict[str, Any]:
        """More fields of a request for a lease: what it is for."""
        return {}

    def _renew(self, held: Held) -> None:
        self._send(
            inputs.RenewRequest(
                request_id=self._id(), issued_at_ns=self.sim.now_ns + self.skew_ns, lease=held.lease, token=held.token
            )
        )

    def release(self, held: Held) -> None:
        """Stop believing, then say so."""
        held.is_over = True
        self.let_go(held)
        operation = Operation("release", held.devices, self.sim.now_ns, lease=held.lease)
        self.sim.history.append(operation)
        self._send(
            inputs.ReleaseRequest(
                request_id=self._id(), issued_at_ns=self.sim.now_ns + self.skew_ns, lease=held.lease, token=held.token
            ),
            operation,
        )

    def let_go(self, held: Held) -> None:
        """Use its devices no more."""
        for device in held.devices:
            self._host(device).stop_using(split_device_id(device)[1], self.name)  # type: ignore[arg-type]

    def _host(self, device: str):  # type: ignore[no-untyped-def]
        return next(host for host in self.sim.hosts if host.name == device.partition("/")[0])

    def _use_or_leave(self, held: Held) -> None:
        device = self.sim.rng.choice(held.devices)
        host, key = self._host(device), split_device_id(device)[1]  # type: ignore[arg-type]
        if self.name in host.users.get(key, []):
            host.stop_using(key, self.name)
        elif self.sim.is_ready(host.name, key, held.lease):
            host.use(key, self.name)

    def _misbehave(self) -> None:
        """Renew or release with a token that is not (or no longer) good, or say something else under an old id."""
        rng = self.sim.rng
        everyone = [held for holder in self.sim.holders for held in holder.held]
        if not everyone:
            return
        held = rng.choice(everyone)
        peers = [holder for holder in self.sim.holders if holder.principal == self.principal and holder is not self]
        mine = held in self.held
        if any(each.lease == held.lease for peer in peers for each in peer.has()):
            return  # the principal has the right, so this would be no misdeed
        if sum(each.lease == held.lease for each in self.has()) > mine:
            return  # it was given away, or given back: so, too
        token = rng.choice((held.token, held.token + 1, rng.choice(everyone).token))
        kind = rng.choice((inputs.RenewRequest, inputs.ReleaseRequest))
        living = mine and not held.is_over and held.until_ns > self.sim.now_ns
        if mine and token == held.token:
            if not living and kind is inputs.ReleaseRequest:
                self.release(held)  # once more, or too late: the history must know of it
            return
        known = [
            request_id
            for request_id, sent in self.sent.items()
            if sent.answer is not None and not isinstance(sent.request, inputs.RenewRequest)
        ]
        if known and rng.random() < 0.3:
            wrong = inputs.ReleaseRequest(
                request_id=RequestId(rng.choice(known)),
                issued_at_ns=self.sim.now_ns + self.skew_ns,
                lease=held.lease,
                token=1,
            )
            self.sim.submit(self, wrong, is_trick=True)
            return
        self._send(
            kind(request_id=self._id(), issued_at_ns=self.sim.now_ns + self.skew_ns, lease=held.lease, token=token)
        )

    def _take_anothers_words(self) -> None:
        """Send what another principal sent, id and all: it is a request of ours, and tells nothing of theirs."""
        others = self._others_requests()
        if not others:
            return
        request = self.sim.rng.choice(others)
        operation = None
        if isinstance(request, inputs.LeaseRequest | inputs.PrepareRequest):
            devices = request.devices if isinstance(request, inputs.LeaseRequest) else ()
            operation = Operation("acquire", devices, self.sim.now_ns, ttl_ns=counted_ns(request.ttl_ms))
            self.sim.history.append(operation)
        self._send(request, operation)

    def _others_requests(self) -> list[Request]:
        """What holders of other principals have sent, and could be sent by this one."""
        peers = [holder for holder in self.sim.holders if holder.principal == self.principal]
        known = {request_id for peer in peers for request_id in peer.sent}
        ours = {held.lease for peer in peers for held in peer.has()}
        return [
            sent.request
            for holder in self.sim.holders
            if holder not in peers and holder.speaks_of_needs <= self.speaks_of_needs
            for sent in holder.sent.values()
            if sent.request.request_id not in known and getattr(sent.request, "lease", 0) not in ours
        ]

    def has(self) -> list[Held]:
        """All that it ever had."""
        return self.held

    # --- answers --------------------------------------------------------------------------------------------------

    def take(self, request: Request, answer: Answer) -> None:
        """Judge an answer against the log and against what was answered before."""
        sent = self.sent[request.request_id]
        if isinstance(request, inputs.RenewRequest) and refused(answer, "request_too_old"):
            # Only the last renewals of a lease are remembered: what became of this one is not told any more.
            sent.answer = sent.answer or answer
            return
        if request != sent.request:
            _must(answer.outcome == "refused", "once", "another body under a known id was not refused")
            return
        first = sent.answer
        position = self.sim.oracle.decided.get((self.principal, request.request_id))
        is_renewal = isinstance(request, inputs.RenewRequest) and answer.outcome == "renewed"
        if is_renewal and answer.position != position:
            # Another allocator may have written it down all the same.
            self._take_unwritten(sent, answer)
            return
        if first is not None and refused(first, "request_too_old"):
            return
        _must(position is not None, "kept", f"{request.request_id} was answered, but is not in the log")
        _must(answer.position == position, "kept", f"{request.request_id}: answered {answer.position}, log {position}")
        if first is not None and sent.is_unwritten:
            return
        if first is not None:
            same = (first.outcome, first.lease, first.position) == (answer.outcome, answer.lease, answer.position)
            _must(same, "once", f"{request.request_id} was answered {first.outcome}, then {answer.outcome}")
            self._take_token(answer)
            return
        sent.answer = answer
        if refused(answer, "token_stale") and self.sim.oracle.era:
            self._ask_for_token(request)
        self._believe(sent, answer)

    def _take_unwritten(self, sent: Sent, answer: Answer) -> None:
        """The lease was kept for as long already; so this is not remembered, and may be answered otherwise later."""
        covered_by = self.sim.oracle.kinds.get(answer.position, "nothing")
        _must(covered_by in _KEEPS, "kept", f"{answer.lease} is kept by {covered_by} at {answer.position}")
        if sent.answer is None:
            sent.answer, sent.is_unwritten = answer, True
            self._believe(sent, answer)

    def _ask_for_token(self, request: Request) -> None:
        """The ledger may have been restored: the request of the grant is asked again."""
        for held in self.held:
            is_asked = held.request.request_id in self.sent
            if held.lease == getattr(request, "lease", 0) and not held.is_over and is_asked:
                self.sim.submit(self, held.request)

    def _take_token(self, answer: Answer) -> None:
        for held in self.held:
            if held.lease == answer.lease and answer.outcome == "granted":
                held.token = max(held.token, answer.token)

    def _believe(self, sent: Sent, answer: Answer) -> None:
        request = sent.request
        if sent.operation is not None:
            sent.operation.finish(self.sim.now_ns, ok=answer.outcome != "refused", lease=answer.lease)
        if isinstance(request, inputs.PrepareRequest) and sent.operation is not None:
            # Which devices it means is only known now.
            sent.operation.devices = answer.devices
        if isinstance(request, inputs.LeaseRequest | inputs.PrepareRequest) and answer.outcome == "granted":
            until_ns = sent.at_ns + counted_ns(request.ttl_ms)
            held = Held(answer.lease, answer.token, answer.devices, until_ns, request.ttl_ms, request)
            held.is_over = answer.state != "living"
            if answer.lease in self.sim.cut_short:
                held.is_over, held.until_ns = True, 0
            self.held.append(held)
            check_one_owner(self.sim.holders, self.sim.now_ns)
        elif isinstance(request, inputs.RenewRequest) and answer.outcome == "renewed":
            for held in self.held:
                if held.lease == request.lease and not held.is_over and answer.state == "living":
                    held.until_ns = max(held.until_ns, sent.at_ns + counted_ns(held.ttl_ms))

    def settle(self) -> None:
        """Give everything back, and let go of what is over."""
        for held in self.held:
            if held.is_over and self._is_orphan(held) and all(sent.answer for sent in self.sent.values()):
                # Nothing else ends it: its token may have been an old one when it was released, or its clock wrong.
                self.skew_ns = self.sim.reader.head.decided_at_ns - self.sim.now_ns
                if held.request.request_id in self.sent:
                    self.sim.submit(self, held.request)
                self.release(held)
            elif not held.is_over and self._gives_back(held):
                self.release(held)
            else:
                self.let_go(held)

    def _gives_back(self, held: Held) -> bool:
        """Whether it says that it has no use for it any more, and does not leave that to time."""
        return self._is_orphan(held) or held.until_ns > self.sim.now_ns + SECOND

    def _is_orphan(self, held: Held) -> bool:
        """Whether it is for a domain that was seen, and whose end nobody will see, for all its waiting."""
        if self.sim.now_ns < self.sim.healed_ns + 60 * SECOND:
            return False
        bond = self.sim.oracle.domains.bonds.get(held.lease)
        gone = (poller.hypervisor.host.name for poller in self.sim.pollers if poller.is_gone)
        return bond is not None and bond.is_seen and not bond.hosts.isdisjoint(gone)


class SimFlooder(SimHolder):
    """A principal that asks for what there is not, far more often than anybody can bear."""

    def act(self) -> None:
        """Ask a hundred times."""
        if self.sim.rng.random() >= self.sim.faults.flood:
            return
        for _ in range(100):
            request = inputs.LeaseRequest(
                request_id=self._id(),
                issued_at_ns=self.sim.now_ns,
                devices=("nothing",),
                holder=Holder(self.name),
                ttl_ms=1_000,
            )
            self.sim.submit(self, request)

    def take(self, request: Request, answer: Answer) -> None:
        """Nobody waits for it."""


_KEEPS: Final = ("lease_granted", "lease_renewed", "leases_renewed", "lease_transferred")


def counted_ns(ttl_ms: int) -> int:
    """How long a holder counts on a lease, from when it asked."""
    return ttl_ms * 10**6 - margin_ns(ttl_ms)


def _must(holds: bool, promise: str, text: str) -> None:
    if not holds:
        raise ViolationError(f"{promise}: {text}")
