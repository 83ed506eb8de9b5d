"""Two allocators on one log, driven by any order of what can happen, with memories so small that they overflow.

Whatever comes: the judge of the simulator finds no broken promise, a draft that lost leaves no trace, and every way of
coming to a state comes to the same bytes and the same indexes.
"""

from typing import Any
from unittest.mock import patch

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from leasehold.events import codec, inputs, limits
from leasehold.events.answers import Answer
from leasehold.events.event_types import Event, LeaseRenewed
from leasehold.events.identities import DeviceKey, Holder, HostName, Principal, RequestId
from leasehold.events.inputs import Observed, Request
from leasehold.events.refusals import RefusalCode
from leasehold.projections import evolve
from leasehold.projections.replay import Replay
from leasehold.projections.reporting import Reporter
from leasehold.projections.sequencer import Sequencer
from leasehold.projections.snapshots import decode_state, encode_state
from leasehold.projections.state import State
from leasehold.projections.views import device_view, picture_of
from tests.sim.oracle import Oracle
from tests.sim.world import SECOND, host_devices

HOST = HostName("h1")
START_NS = 1_700_000_000 * SECOND
SMALL: dict[str, Any] = {
    "REQUESTS_KEPT_PER_PRINCIPAL_MAX": 4,
    "RENEWALS_KEPT_PER_LEASE": 2,
    "REFUSALS_TRACKED_MAX": 2,
}
PRINCIPALS = st.sampled_from((Principal("a"), Principal("b")))
HOLDERS = st.sampled_from((Holder("vm1"), Holder("vm2")))
KEYS = st.sampled_from(sorted(host_devices()))
PAIRS = (
    ("pci/0000:01:00.0", "pci/0000:01:00.0"),
    ("pci/0000:02:00.0", "pci/0000:02:00.1"),
    ("pci/0000:03:00.0", "pci/0000:03:10.0"),
    ("pci/0000:03:10.0", "pci/0000:03:00.0"),
    ("pci/0000:04:00.0", "usb/0000:04:00.0/2-1"),
    ("usb/0000:04:00.0/2-1", "pci/0000:04:00.0"),
)
OWNERS = tuple((Principal(principal), Holder(holder)) for principal in "ab" for holder in ("vm1", "vm2"))
SECONDS = st.sampled_from((0, 1, 5, 18, 31, 3_600, 26 * 3_600))
Sent = tuple[Principal, Request]


class TwoAllocators(RuleBasedStateMachine):
    """All inputs go to both; of each round one wins, and the other hears of it."""

    sent: Bundle[Sent] = Bundle("sent")

    def __init__(self) -> None:
        super().__init__()
        self.bounds = patch.multiple(limits, **SMALL)
        self.bounds.start()
        self.now_ns = START_NS
        self.bodies: list[bytes] = []
        self.oracle = Oracle()
        self.reader = State()
        self.both = [Sequencer(State(), cluster="lab", writer=name) for name in ("one", "two")]
        self.asked: list[Sent] = []
        self.answers: dict[int, list[Answer]] = {}
        self.renewals: dict[int, RequestId] = {}
        """Which request is written at which position."""
        self.observed = 0
        self.reporter = Reporter(HOST, "watcher", 1)
        self.picture = host_devices()
        self.snapshot = (0, encode_state(State()))
        self.both[0].note(inputs.DeciderStarts("one", "start"))
        self._hear(self.reporter.starts())
        self._hear(*self.reporter.synced({}, self.picture))
        self._append(0, both=False)

    def teardown(self) -> None:
        """The whole log again: from its beginning, from a snapshot, and decided anew."""
        try:
            self._check_whole()
        finally:
            self.bounds.stop()

    def _check_whole(self) -> None:
        replay = Replay()
        sequence, body = self.snapshot
        tail = decode_state(body)
        assert tail is not None
        for number, record in enumerate(self.bodies, 1):
            assert replay.step(number, record) is None
            if number > sequence:
                evolve.fold(tail, number, record)
        assert encode_state(replay.state) == encode_state(tail) == encode_state(self.reader)

    # --- what comes in --------------------------------------------------------------------------------------------

    def _hear(self, *messages: Observed) -> None:
        for message in messages:
            self.observed += 1
            for each in self.both:
                each.observe(self.observed, codec.decode_observed(codec.encode(message)))

    def _ask(self, principal: Principal, request: Request, who: int) -> Any:
        self.asked.append((principal, request))
        for number, each in enumerate(self.both):
            if who in (number, 2):
                each.ask(len(self.asked) - 1, principal, request)
        return multiple((principal, request))

    def _fields(self) -> dict[str, Any]:
        return {"request_id": RequestId(f"r{len(self.asked)}"), "issued_at_ns": self.now_ns}

    @rule(
        target=sent,
        principal=PRINCIPALS,
        holder=HOLDERS,
        keys=st.lists(KEYS, min_size=1, max_size=3),
        ttl_ms=st.sampled_from((1_000, 20_000)),
        who=st.integers(0, 2),
    )
    def lease(self, principal: Principal, holder: Holder, keys: list[DeviceKey], ttl_ms: int, who: int) -> Any:
        """Somebody wants devices."""
        request = inputs.LeaseRequest(**self._fields(), devices=tuple(keys), holder=holder, ttl_ms=ttl_ms)
        return self._ask(principal, request, who)

    @rule(pair=st.sampled_from(PAIRS), holders=st.permutations(OWNERS), winner=st.integers(0, 1))
    def contend(self, pair: tuple[str, str], holders: list[tuple[Principal, Holder]], winner: int) -> None:
        """Two want what cannot be owned apart, one after the other."""
        for key, (principal, holder) in zip(pair, holders, strict=False):
            request = inputs.LeaseRequest(**self._fields(), devices=(key,), holder=holder, ttl_ms=20_000)
            self._ask(principal, request, 2)
            self._append(winner, both=True)

    @rule(
        target=sent,
        principal=PRINCIPALS,
        which=st.integers(0, 3),
        off=st.sampled_from((0, 0, 0, 1)),
        is_release=st.booleans(),
        who=st.integers(0, 2),
    )
    def renew_or_release(self, principal: Principal, which: int, off: int, is_release: bool, who: int) -> Any:
        """Somebody renews or releases one of the last leases, mostly with its token."""
        leases = sorted(self.reader.leases)[-4:]
        if not leases:
            return multiple()
        lease = leases[which % len(leases)]
        kind = inputs.ReleaseRequest if is_release else inputs.RenewRequest
        return self._ask(principal, kind(**self._fields(), lease=lease, token=lease + off), who)

    @rule(target=sent, principal=PRINCIPALS, key=KEYS, who=st.integers(0, 2))
    def confirm_free(self, principal: Principal, key: DeviceKey, who: int) -> Any:
        """An operator says that a device is free."""
        return self._ask(principal, inputs.ConfirmFreeRequest(**self._fields(), device=key, reason="I looked"), who)

    @rule(before=sent, who=st.integers(0, 2), other=st.booleans())
    def ask_again(self, before: Sent, who: int, other: bool) -> None:
        """A request comes again, or another one with its id."""
        principal, request = before
        if other and isinstance(request, inputs.LeaseRequest):
            request = msgspec.structs.replace(request, ttl_ms=request.ttl_ms + 1)
        self._ask(principal, request, who)

    @rule(key=KEYS, what=st.sampled_from(("use", "stop", "go", "return", "replace")))
    def look(self, key: DeviceKey, what: str) -> None:
        """Something happens on the host, and the watcher sees it."""
        if what == "go":
            self.picture.pop(key, None)
        else:
            there = self.picture.get(key, host_devices()[key])
            users = {"use": ("somebody",), "stop": ()}.get(what, there.in_use_by)
            product = "1572" if what == "replace" else there.product_id
            self.picture[key] = msgspec.structs.replace(there, in_use_by=users, product_id=product)
        self._hear(*self.reporter.look(self.picture))

    @rule(lost=st.booleans())
    def restart_or_lose(self, lost: bool) -> None:
        """The watcher begins a new run, or a message of it is lost and it reports again."""
        if lost:
            self.reporter.assure()
            self._hear(self.reporter.assure())
        else:
            self.reporter = Reporter(HOST, "watcher", self.reporter.run + 1)
            self._hear(self.reporter.starts())
        self._append(0, both=False)
        self._hear(*self.reporter.synced(picture_of(self.reader, HOST), self.picture))

    @rule(alive=st.booleans())
    def hear_or_not(self, alive: bool) -> None:
        """The watcher falls silent, or is heard."""
        for each in self.both:
            each.note(inputs.HostHeard(HOST, "watcher", self.reporter.run, alive))

    @rule(seconds=SECONDS)
    def wait(self, seconds: int) -> None:
        """Time passes."""
        self.now_ns += seconds * SECOND

    @rule(number=st.integers(0, 1))
    def start_anew(self, number: int) -> None:
        """An allocator dies with all that it had, and starts from the snapshot and the tail."""
        sequence, body = self.snapshot
        state = decode_state(body)
        assert state is not None
        self.both[number] = Sequencer(state, cluster="lab", writer=self.both[number].writer)
        for at in range(sequence + 1, len(self.bodies) + 1):
            self.both[number].apply(at, self.bodies[at - 1])
        self.both[number].note(inputs.DeciderStarts(self.both[number].writer, "start"))

    @rule()
    def take_snapshot(self) -> None:
        """A snapshot is taken here."""
        self.snapshot = (len(self.bodies), encode_state(self.reader))

    # --- what goes into the log -----------------------------------------------------------------------------------

    @rule(winner=st.integers(0, 1), both=st.booleans())
    def append(self, winner: int, both: bool) -> None:
        """One allocator appends; the other has drafted too, or not."""
        self._append(winner, both=both)

    def _append(self, winner: int, *, both: bool) -> None:
        ours, theirs = self.both[winner], self.both[1 - winner]
        other = theirs.draft(self.now_ns) if both else None
        draft = ours.draft(self.now_ns)
        if draft is None:
            if other is not None:
                theirs.committed()
                self._stored(other.body)
                ours.apply(len(self.bodies), other.body)
        else:
            ours.committed()
            self._stored(draft.body)
            (theirs.apply if other is None else theirs.lost)(len(self.bodies), draft.body)
        for each in self.both:
            for reply in each.replies:
                self.answers.setdefault(reply.ticket, []).append(reply.answer)
            each.replies.clear()

    def _stored(self, body: bytes) -> None:
        self.bodies.append(body)
        self.oracle.record(len(self.bodies), body)
        evolve.fold(self.reader, len(self.bodies), body, self._note_renewal)

    def _note_renewal(self, _state: State, position: int, event: Event) -> None:
        if isinstance(event, LeaseRenewed):
            self.renewals[position] = event.request.request_id

    # --- what always holds ----------------------------------------------------------------------------------------

    @invariant()
    def all_have_one_state(self) -> None:
        """Who decided, who lost a draft and who only read are in one state, to the byte."""
        body = encode_state(self.reader)
        assert [encode_state(each.state) for each in self.both] == [body, body]

    @invariant()
    def indexes_are_those_of_the_rows(self) -> None:
        """What is derived is what would be derived anew from the rows."""
        anew = decode_state(encode_state(self.reader))
        assert anew is not None
        for state in (self.reader, *(each.state for each in self.both)):
            assert derived(state) == derived(anew)

    @invariant()
    def rows_agree(self) -> None:
        """Leases and devices say the same of each other, and nothing that is remembered outgrows its bound."""
        state = self.reader
        for device, row in state.devices.items():
            assert not row.lease or device in state.leases[row.lease].devices
            assert row.ending == bool(row.lease and state.leases[row.lease].ended)
            device_view(state, device)
        for lease, held in state.leases.items():
            assert held.held == sum(state.devices[device].lease == lease for device in held.devices)
            assert held.ended or held.held == (0 if held.mode else len(held.devices))
        assert len(state.refusals) <= SMALL["REFUSALS_TRACKED_MAX"]
        assert all(
            row.next - row.first <= SMALL["REQUESTS_KEPT_PER_PRINCIPAL_MAX"] + 8 for row in state.principals.values()
        )

    @invariant()
    def answers_agree(self) -> None:
        """Whoever answered a request, and however often: what was decided of it is one thing, or it is forgotten.

        A renewal that changed nothing was not decided: it is answered with the position of what keeps the lease.
        """
        for ticket, answers in self.answers.items():
            request_id = self.asked[ticket][1].request_id
            decided = {
                (each.outcome, each.position, each.lease)
                for each in answers
                if not _is_not_kept(each)
                and (each.outcome != "renewed" or self.renewals.get(each.position) == request_id)
            }
            assert len(decided) <= 1, self.asked[ticket]


def _is_not_kept(answer: Answer) -> bool:
    """Whether it is a refusal because of what is, or is no longer, remembered: such a one is not remembered itself."""
    return answer.refusal is not None and answer.refusal.code in {
        RefusalCode.REQUEST_ID_REUSED,
        RefusalCode.REQUEST_TOO_OLD,
    }


def derived(state: State) -> dict[str, Any]:
    """The indexes of a state, without what they may hold too much."""
    indexes = state.indexes
    timed = {lease: row.expires_at_ns for lease, row in state.leases.items() if not (row.ended or row.domain_seen)}
    return {
        **{name: dict(table) for name, table in vars(indexes).items() if isinstance(table, dict)},
        "queue": [position for position in indexes.refusal_queue if position in state.refusals],
        "expiries": sorted({entry for entry in state.expiries.entries if timed.get(entry[1]) == entry[0]}),
        "next": state.next_expiry_ns(),
        "due": state.expired_by(2**62, limit=100),
        "outlived": state.outlived_by(2**62, limit=100),
    }


TestTwoAllocators = TwoAllocators.TestCase
TestTwoAllocators.settings = settings(max_examples=120, stateful_step_count=40)
