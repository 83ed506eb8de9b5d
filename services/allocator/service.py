"""The allocator's loop around the sequencer: everything that waits goes into the next record, one append at a time.

What can wake it up: a request, an observation, a note of its own, time. What it does then is always the same: catch up
if there is something to catch up, draft, append until that is certain, give out the answers.

With a hint who decides, it does so only while it is its turn. A standby follows the log, hears what everybody hears,
and answers nothing but that it does not know; what the log lacks when its turn comes is decided then.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from leasehold.events import codec, inputs, limits
from leasehold.events.answers import Answer
from leasehold.events.errors import CorruptLedgerError, InvalidInputError, UnavailableError
from leasehold.events.identities import HostName, Principal
from leasehold.events.inputs import Request
from leasehold.events.record import Record
from leasehold.events.subjects import Subjects
from leasehold.projections import selectors
from leasehold.projections.appending import Won
from leasehold.projections.sequencer import Draft, Sequencer
from leasehold.projections.standby import Standby
from leasehold.projections.state import State
from leasehold.projections.timekeeping import LedgerClock
from leasehold.services.allocator.contact import LogContact, ServerTime, monotonic_ns
from leasehold.services.allocator.door import Door, Respond
from leasehold.services.allocator.hearing import Hearing
from leasehold.services.allocator.hint import Hint, HintKeeper
from leasehold.services.allocator.intake import Inbox
from leasehold.services.clocknote import ClockKeeper
from leasehold.services.ledger.appends import append_certainly
from leasehold.services.ledger.observed import ObservedReader
from leasehold.services.ledger.port import Entry, Ledger, last_beyond_doubt
from leasehold.services.room import RELEASING, Notices, RoomNotice

_log: Final = logging.getLogger(__name__)

SWEEP_S: Final = 0.05
"""While somebody waits, it is looked this often whether the time is over."""

_FIELD_CHARS_MAX: Final = 80
_MESSAGE_CHARS_MAX: Final = 500

TROUBLE_PAUSE_S: Final = 0.05
_TOO_MANY: Final = f"more than {limits.REQUESTS_WAITING_MAX} requests wait; ask again with this id"


class Allocator:
    """One allocator: decides what waits and appends it. Any number may run; only the log says whose word counts."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        observed: ObservedReader,
        subjects: Subjects,
        server_time: ServerTime,
        state: State,
        writer: str,
        on_record: Callable[[State], Awaitable[None]],
        hint: Hint | None = None,
        clock: LedgerClock | None = None,
        clocks: ClockKeeper | None = None,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Nothing is decided before `run`.

        Args:
            on_record: Called after each record with the state behind it, nothing being in flight.
            hint: Who decides; without one, this allocator always does.
            clock: That of the process before, if it can be carried on.
            clocks: See `LogContact`, as for `wall_ns`.
        """
        self.sequencer = Sequencer(state, cluster=subjects.cluster, writer=writer)
        self.door = Door()
        self.hearing = Hearing()
        self.inbox = Inbox(observed, subjects, self.sequencer, wall_ns=wall_ns, arrived=self._something_waits)
        self.room = Notices()
        self._ledger = ledger
        self._on_record = on_record
        self.contact = LogContact(server_time, wall_ns, clock=clock or LedgerClock(), clocks=clocks)
        self._hint = None if hint is None else HintKeeper(hint, writer, able=self._unable, moved=self._something_waits)
        self._standby = Standby()
        self._is_deciding = False
        self._is_urgent = True
        """There is work even if nothing waits."""
        self._takeovers = self._lost_appends = 0
        self._trouble = "not started"
        self._work = asyncio.Event()
        self._is_unclear = False
        self._asked = asyncio.Event()
        self.on_settled: Callable[[], None] = lambda: None
        """Called whenever nothing is in flight any more."""
        self._begun = asyncio.Event()
        """The ledger exists: set with the first record that is known."""

    # --- what comes in --------------------------------------------------------------------------------------------

    @property
    def trouble(self) -> str:
        """Why nothing is decided at the moment, and nothing must be said about the log; empty if it is and may."""
        if self._hint is not None and not (self._hint.decides and self._is_deciding):
            return f"stands by; {self._hint.decider or 'nobody'} decides" + (self._trouble and f" ({self._trouble})")
        return self._trouble or self.contact.stale

    @property
    def decides(self) -> bool:
        """Whether it is us who decide and answer now."""
        return not self.trouble

    def _unable(self) -> str:
        return self.contact.trouble

    def _something_waits(self) -> None:
        self._work.set()

    def ask(
        self, principal: Principal, verb: str, body: bytes, respond: Respond, arrived_s: float | None = None
    ) -> None:
        """A request arrived (just now, or at `arrived_s` of the monotonic clock); `respond` is called once, within a
        second from then.
        """
        is_standby = self._hint is not None and (self._trouble != "" or not self._is_deciding)
        if verb not in RELEASING and self._turns_away(respond, is_standby=is_standby):
            return
        try:
            request = codec.decode_request(verb, body)
            selectors.check_request(request)
        except InvalidInputError as error:
            if is_standby:
                return
            self.door.counts["invalid"] += 1
            # A field may be one that the requester has thought of, name and all.
            field, message = error.field[:_FIELD_CHARS_MAX], str(error)[:_MESSAGE_CHARS_MAX]
            respond(Answer(outcome="invalid", field=field, message=message))
            return
        now_s = time.monotonic() if arrived_s is None else arrived_s
        ticket = self.door.wait(request.request_id, now_s, respond)
        self._asked.set()
        if is_standby:
            self._keep(ticket, principal, request)
        elif self._trouble and not self.sequencer.in_flight:
            self.door.give_up(ticket, "unavailable", self._trouble)
        elif self.sequencer.ask(ticket, principal, request):
            self._work.set()
        else:
            self.door.give_up(ticket, self.not_done, _TOO_MANY)

    def _turns_away(self, respond: Respond, *, is_standby: bool) -> bool:
        notice = self.room.low(time.monotonic())
        if notice is None:
            return False
        if not is_standby:
            self.door.counts["no_room"] += 1
            respond(Answer(outcome=self.not_done, message=notice.told, retry_after_ms=limits.ROOM_NOTICE_MS))
        return True

    @property
    def not_done(self) -> str:
        """The outcome of what is not decided here: where others hear it too, it may yet be decided by one of them."""
        return "unavailable" if self._hint is None else "outcome_unknown"

    def hear(self, host: HostName, agent: str, run: int) -> None:
        """An agent said that its run lives."""
        self.hearing.heard(self.sequencer.state, host, agent, run, monotonic_ns())

    def hear_room(self, notice: RoomNotice) -> None:
        """A server of the bus said how much room its disk has."""
        self.room.hear(notice, time.monotonic())
        self._work.set()

    # --- the loop -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Decide, or stand by, until cancelled.

        Raises:
            CorruptLedgerError: the log is not what it was; nothing more may be decided on it.
        """
        selectors.load()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.inbox.run(self._begun))
                tasks.create_task(self._sweep())
                tasks.create_task(self._drive())
                if self._hint is not None:
                    tasks.create_task(self._hint.run())
        finally:
            if self._hint is not None:
                await self._hint.give_back()

    async def _sweep(self) -> None:
        """Tell those whose time is over that no answer comes in time."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            while self.door.waiting:
                await asyncio.sleep(SWEEP_S)
                self._give_up_overdue()

    def _give_up_overdue(self) -> None:
        overdue = frozenset(self.door.overdue(time.monotonic()))
        withdrawn = self.sequencer.withdraw(overdue) if overdue else overdue
        for ticket in sorted(overdue):
            if ticket in withdrawn and self._hint is None:
                self.door.give_up(ticket, "unavailable", "the log did not answer in time; nothing was done")
            elif self._is_deciding or self._standby.is_undecided(ticket, self.sequencer.state):
                why = "the log did not answer in time; ask again with this id"
                self.door.give_up(ticket, "outcome_unknown", why)
            else:
                # Who decides has answered.
                self.door.forget(ticket)

    def _leads(self) -> bool:
        return self._hint is None or self._hint.decides

    async def _drive(self) -> None:
        while True:
            if self._leads():
                await self._lead()
            else:
                await self._stand_by()

    async def _lead(self) -> None:
        """One turn of the decider."""
        await self._wait_for_work()
        self._work.clear()
        if not self._leads():
            return
        try:
            await self._keep_contact()
        except UnavailableError as error:
            self._set_trouble(f"the log does not answer ({error})")
            await asyncio.sleep(TROUBLE_PAUSE_S)
            return
        self._set_trouble(self.contact.clock.trouble)
        now_ns = self.contact.clock.now_ns(monotonic_ns())
        if now_ns is None:
            if self._hint is not None:
                # Another's clock may be right.
                await self._hint.give_back()
            return
        self._begin()
        self._look_for_room()
        await self._decide(now_ns)

    def _look_for_room(self) -> None:
        """While there is hardly any, nothing but releases goes into the log; above all, nothing expires."""
        notice = self.room.low(time.monotonic())
        if (notice is not None) == self.sequencer.releases_only:
            return
        self.sequencer.releases_only = notice is not None
        if notice is None:
            _log.warning("there is room for the log again")
            # Renewals were turned away, too.
            self._note_start("outage")
            return
        _log.error("%s", notice.told)
        for pending in self.sequencer.give_up_requests():
            if codec.verb_of(pending.asked.request) in RELEASING:
                self.sequencer.ask(pending.ticket, pending.asked.principal, pending.asked.request)
            else:
                self.door.give_up(pending.ticket, self.not_done, notice.told)

    async def _wait_for_work(self) -> None:
        if self._is_urgent:
            self._is_urgent = False
            return
        pause_s = limits.CONTACT_MS / 1_000
        now_ns = self.contact.clock.now_ns(monotonic_ns())
        due_ns = self.sequencer.next_work_ns()
        if now_ns is not None and due_ns is not None:
            pause_s = min(pause_s, max(0.0, (due_ns - now_ns) / 1e9))
        if now_ns is not None and self.sequencer.has_work(now_ns):
            # Not at once: what has arrived in the same moment belongs into the same record.
            await asyncio.sleep(0)
            return
        await self._wait(pause_s)

    async def _wait(self, pause_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._work.wait()

    def _set_trouble(self, trouble: str) -> None:
        if trouble != self._trouble:
            _log.log(logging.WARNING if trouble else logging.INFO, "%s", trouble or "no trouble any more")
        self._trouble = trouble

    # --- beginning and ending to decide ---------------------------------------------------------------------------

    def _begin(self) -> None:
        """From now on it is us who decide, if it was not before; and what was heard meanwhile is decided."""
        if not self._is_deciding:
            self._is_deciding = True
            head = self.sequencer.state.head
            is_first = self._hint is None or not head.decider
            # Even if nobody else decided meanwhile: what was noted of an outage went when we stood by.
            self._note_start("start" if is_first else "takeover")
            if head.decider != self.sequencer.writer:
                self._takeovers += not is_first
                _log.info("decides from record %d on, after %s", head.sequence + 1, head.decider or "nobody")
        # While neither log nor hint could be reached, nobody took over and nobody forgot.
        self._forget_old()
        for ticket, asked in self._standby.take_over():
            if not self.sequencer.ask(ticket, asked.principal, asked.request):
                self.door.give_up(ticket, "outcome_unknown", _TOO_MANY)

    def _note_start(self, reason: str) -> None:
        age_ms = self.contact.clock.age_ms(monotonic_ns())
        self.sequencer.note(inputs.DeciderStarts(self.sequencer.writer, reason, age_ms))

    def _end(self) -> None:
        """Another decides: what waits is kept as what a standby has heard."""
        if self._is_deciding:
            self._is_deciding = self.sequencer.releases_only = False
            _log.info("stands by")
        self.sequencer.give_up_notes()
        for pending in self.sequencer.give_up_requests():
            self._keep(pending.ticket, pending.asked.principal, pending.asked.request)

    def _keep(self, ticket: int, principal: Principal, request: Request) -> None:
        forgotten = self._standby.hear(ticket, principal, request, monotonic_ns())
        if forgotten is not None:
            self.door.give_up(forgotten, "outcome_unknown", _TOO_MANY)

    def _forget_old(self) -> None:
        self._standby.forget(monotonic_ns() - limits.REQUEST_HEARD_MS * 1_000_000)

    async def _stand_by(self) -> None:
        """Follow the log and hear everybody, until it is our turn."""
        assert self._hint is not None
        self._end()
        following = asyncio.create_task(self._follow_ledger())
        try:
            while not self._leads() and not following.done():
                try:
                    if self.contact.is_due:
                        await self.contact.hear_time(self.sequencer.state.head)
                        self.contact.made()
                    self._set_trouble(self.contact.clock.trouble)
                except UnavailableError as error:
                    self._set_trouble(f"the log does not answer ({error})")
                if not self.contact.trouble and not self._hint.decider:
                    await self._hint.look()
                self._forget_old()
                self._work.clear()
                if not self._leads():
                    await self._wait(limits.HINT_LOOK_MS / 1_000)
        finally:
            await _ended(following)
        self.contact.want()
        self._is_urgent = True

    async def _follow_ledger(self) -> None:
        async with contextlib.aclosing(self._ledger.follow(self.sequencer.state.head.sequence)) as batches:
            async for entries in batches:
                for entry in entries:
                    self._fold(entry)
                await self._on_record(self.sequencer.state)
                self._begun.set()
                self.inbox.make_room()

    def _fold(self, entry: Entry) -> None:
        """Take in what another allocator has appended."""
        self._folded(self.sequencer.apply(entry.sequence, entry.body))

    def _folded(self, record: Record) -> None:
        self.contact.clock.heard_record(decided_at_ns=record.decided_at_ns, monotonic_ns=monotonic_ns())
        for ticket in self._standby.seen(record):
            self.door.forget(ticket)

    # --- contact --------------------------------------------------------------------------------------------------

    async def _keep_contact(self) -> None:
        """Once a second: the server's time, what others have appended, who has been silent."""
        if not self.contact.is_due and not self._trouble:
            return
        await self.contact.hear_time(self.sequencer.state.head)
        await self._catch_up()
        await self.inbox.check()
        self.contact.made()
        if self.contact.was_cut_off():
            _log.warning("the log was out of reach for longer than %d ms", limits.OUTAGE_MS)
            self.hearing.forget()
            if self._is_deciding or self.sequencer.state.head.decider == self.sequencer.writer:
                self._note_start("outage")
        for note in self.hearing.notes(self.sequencer.state, monotonic_ns()):
            self.sequencer.note(note)

    async def _catch_up(self) -> None:
        """Fold what other allocators have appended."""
        head = self.sequencer.state.head.sequence
        last = await last_beyond_doubt(self._ledger, head)
        if last < head:
            raise CorruptLedgerError(f"the log ends at {last}, but {head} was read from it before", sequence=last + 1)
        if last == head:
            return
        async with contextlib.aclosing(self._ledger.follow(head)) as batches:
            async for entries in batches:
                for entry in entries:
                    self._fold(entry)
                if self.sequencer.state.head.sequence >= last:
                    return

    # --- deciding -------------------------------------------------------------------------------------------------

    async def _decide(self, now_ns: int) -> None:
        draft = self.sequencer.draft(now_ns)
        if draft is not None:
            await self._append(draft)
        elif self.sequencer.replies and not await self._is_last():
            self.sequencer.reconsider()
            self.contact.want()
            return
        if self.sequencer.state.head.sequence:
            self._begun.set()
        for reply in self.sequencer.replies:
            self.door.answer(reply.ticket, reply.answer)
        self.sequencer.replies.clear()
        self.inbox.make_room()
        self.on_settled()

    async def _append(self, draft: Draft) -> None:
        self._is_unclear = False
        asked_ns = monotonic_ns()
        end = await append_certainly(self._ledger, draft.expected, draft.body, on_unknown=self._note_unclear)
        if self._is_unclear:
            self.contact.want()
        if isinstance(end, Won):
            self.sequencer.committed()
            self.contact.proved(asked_ns)
        else:
            self._lost_appends += 1
            _log.info("record %d was another's; deciding again", end.sequence)
            self._folded(self.sequencer.lost(end.sequence, end.body))
            self.contact.want()
            if self._hint is not None and not self._hint.is_silent:
                await self._hint.look()
        await self._on_record(self.sequencer.state)

    async def _is_last(self) -> bool:
        """Whether nobody has gone on behind us: what is answered without a record of its own has no other proof."""
        asked_ns = monotonic_ns()
        try:
            last = await self._ledger.last_sequence()
        except UnavailableError:
            return False
        self.contact.proved(asked_ns)
        return last == self.sequencer.state.head.sequence

    def _note_unclear(self) -> None:
        self._is_unclear = True

    def status(self) -> dict[str, int | str]:
        """Figures for whoever asks the service."""
        head = self.sequencer.state.head
        return {
            "writer": self.sequencer.writer,
            "role": "decider" if self._is_deciding else "standby",
            "sequence": head.sequence,
            "decider": head.decider,
            "trouble": self.trouble,
            "takeovers": self._takeovers,
            "lost_appends": self._lost_appends,
            "dropped_observations": self.inbox.dropped.count,
            "waiting": self.sequencer.waiting,
            "heard": len(self._standby),
            **self.door.counts,
        }


async def _ended(task: asyncio.Task[None]) -> None:
    """End a task; what ended it before is raised."""
    while not task.done():
        # The NATS client swallows a cancellation in some places, so once may not be enough.
        task.cancel()
        await asyncio.wait({task}, timeout=0.1)
    if not task.cancelled():
        task.result()
