"""The allocator's loop around the sequencer: everything that waits goes into the next record, one append at a time.

What can wake it up: a request, an observation, a note of its own, time. What it does then is always the same: catch up
if there is something to catch up, draft, append until that is certain, give out the answers.
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
from leasehold.events.subjects import Subjects
from leasehold.projections.appending import Won
from leasehold.projections.sequencer import Sequencer
from leasehold.projections.state import State
from leasehold.projections.timekeeping import Contact, LedgerClock
from leasehold.services.allocator.door import Door, Respond
from leasehold.services.allocator.hearing import Hearing
from leasehold.services.complaints import Complaints, printable
from leasehold.services.ledger.appends import append_certainly
from leasehold.services.ledger.observed import Message, ObservedReader
from leasehold.services.ledger.port import Ledger

_log: Final = logging.getLogger(__name__)

SWEEP_S: Final = 0.05
"""While somebody waits, it is looked this often whether the time is over."""

_FIELD_CHARS_MAX: Final = 80
_MESSAGE_CHARS_MAX: Final = 500

ServerTime = Callable[[], Awaitable[int]]
"""Asks the log's server for its time, ns since 1970."""


def _monotonic_ns() -> int:
    # Unlike CLOCK_MONOTONIC it goes on while the machine sleeps.
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


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
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Nothing is decided before `run`.

        Args:
            on_record: Called after each record with the state behind it, nothing being in flight.
            wall_ns: This machine's own clock, which is only compared with the server's.
        """
        self.sequencer = Sequencer(state, cluster=subjects.cluster, writer=writer)
        self.door = Door()
        self.hearing = Hearing()
        self.dropped_observations = Complaints(_log, "messages of the inbox were dropped")
        self._ledger = ledger
        self._observed = observed
        self._subjects = subjects
        self._server_time = server_time
        self._on_record = on_record
        self._wall_ns = wall_ns
        self._clock = LedgerClock()
        self._contact = Contact()
        self._contact_ns = 0
        self._trouble = "not started"
        self._work = asyncio.Event()
        self._room = asyncio.Event()
        self._is_unclear = False
        self._asked = asyncio.Event()
        self.on_settled: Callable[[], None] = lambda: None
        """Called whenever nothing is in flight any more."""
        self._begun = asyncio.Event()
        """The ledger exists: set with the first record that is known."""

    # --- what comes in --------------------------------------------------------------------------------------------

    @property
    def trouble(self) -> str:
        """Why nothing is decided at the moment; empty if it is."""
        return self._trouble

    def ask(self, principal: Principal, verb: str, body: bytes, respond: Respond) -> None:
        """A request arrived; `respond` is called once, within a second."""
        now_s = time.monotonic()
        limited = self.door.admit(principal, now_s)
        if limited:
            respond(Answer(outcome="unavailable", message=limited, retry_after_ms=1_000))
            return
        try:
            request = codec.decode_request(verb, body)
        except InvalidInputError as error:
            self.door.counts["invalid"] += 1
            # A field may be one that the requester has thought of, name and all.
            field, message = error.field[:_FIELD_CHARS_MAX], str(error)[:_MESSAGE_CHARS_MAX]
            respond(Answer(outcome="invalid", field=field, message=message))
            return
        ticket = self.door.wait(principal, request.request_id, now_s, respond)
        self._asked.set()
        if self._trouble and not self.sequencer.in_flight:
            self.door.give_up(ticket, "unavailable", self._trouble)
        elif not self.sequencer.ask(ticket, principal, request):
            self.door.give_up(ticket, "unavailable", f"{limits.REQUESTS_WAITING_MAX} requests wait already")
        self._work.set()

    async def _observe(self, batch: list[Message]) -> None:
        for sequence, subject, body in batch:
            while self.sequencer.observed_room <= 0:
                self._room.clear()
                await self._room.wait()
            self.sequencer.observe(sequence, self._read_observed(sequence, subject, body))
            self._work.set()

    def _read_observed(self, sequence: int, subject: str, body: bytes) -> inputs.Observed | None:
        try:
            host, agent = self._subjects.parse_reporter(subject)
            message = codec.decode_observed(body)
            if (message.host, message.agent) != (host, agent):
                said = f"{message.agent} of {message.host}, but it came as {agent} of {host}"
                raise InvalidInputError(said, field="host")
            if message.run > self._wall_ns() + limits.REQUEST_AHEAD_NS_MAX:
                # Runs are times by their agents' clocks, and no later run could be above the highest number there is.
                raise InvalidInputError(f"{message.run} is more than an hour in the future", field="run")
        except InvalidInputError as error:
            self.dropped_observations.tell(
                "message %d of the inbox on %s was dropped: %s", sequence, printable(subject), error
            )
            return None
        return message

    def hear(self, host: HostName, agent: str, run: int) -> None:
        """An agent said that its run lives."""
        self.hearing.heard(self.sequencer.state, host, agent, run, _monotonic_ns())

    # --- the loop -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Decide until cancelled.

        Raises:
            CorruptLedgerError: the log is not what it was; nothing more may be decided on it.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_observed())
            tasks.create_task(self._sweep())
            tasks.create_task(self._drive())

    async def _follow_observed(self) -> None:
        await self._begun.wait()
        following = self._observed.follow(self.sequencer.read_through)
        async with contextlib.aclosing(following) as batches:
            async for batch in batches:
                await self._observe(batch)

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
            if ticket in withdrawn:
                self.door.give_up(ticket, "unavailable", "the log did not answer in time; nothing was done")
            else:
                why = "the log did not answer in time; ask again with this id"
                self.door.give_up(ticket, "outcome_unknown", why)

    async def _drive(self) -> None:
        self.sequencer.note(inputs.DeciderStarts(self.sequencer.writer, "start"))
        while True:
            await self._wait_for_work()
            self._work.clear()
            try:
                await self._keep_contact()
            except UnavailableError as error:
                self._set_trouble(f"the log does not answer ({error})")
                await asyncio.sleep(0.05)
                continue
            now_ns = self._clock.now_ns(_monotonic_ns())
            self._set_trouble(self._clock.trouble)
            if now_ns is not None:
                await self._decide(now_ns)

    async def _wait_for_work(self) -> None:
        pause_s = limits.CONTACT_MS / 1_000
        now_ns = self._clock.now_ns(_monotonic_ns())
        due_ns = self.sequencer.next_work_ns()
        if now_ns is not None and due_ns is not None:
            pause_s = min(pause_s, max(0.0, (due_ns - now_ns) / 1e9))
        if now_ns is not None and self.sequencer.has_work(now_ns):
            # Not at once: what has arrived in the same moment belongs into the same record.
            await asyncio.sleep(0)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._work.wait()

    def _set_trouble(self, trouble: str) -> None:
        if trouble != self._trouble:
            _log.log(logging.WARNING if trouble else logging.INFO, "%s", trouble or "decides")
        self._trouble = trouble

    # --- contact --------------------------------------------------------------------------------------------------

    async def _keep_contact(self) -> None:
        """Once a second: the server's time, what others have appended, who has been silent."""
        if _monotonic_ns() - self._contact_ns < limits.CONTACT_MS * 1_000_000 and not self._trouble:
            return
        before_ns = _monotonic_ns()
        server_ns = await self._server_time()
        after_ns = _monotonic_ns()
        self._clock.heard_server(
            server_ns=server_ns + (after_ns - before_ns) // 2, monotonic_ns=after_ns, wall_ns=self._wall_ns()
        )
        await self._catch_up()
        await self._check_inbox()
        self._contact_ns = after_ns
        if self._contact.reached(after_ns):
            _log.warning("the log was out of reach for longer than %d ms", limits.OUTAGE_MS)
            self.hearing.forget()
            self.sequencer.note(inputs.DeciderStarts(self.sequencer.writer, "outage"))
        for note in self.hearing.notes(self.sequencer.state, after_ns):
            self.sequencer.note(note)

    async def _catch_up(self) -> None:
        """Fold what other allocators have appended."""
        last = await self._ledger.last_sequence()
        head = self.sequencer.state.head.sequence
        if last < head:
            raise CorruptLedgerError(f"the log ends at {last}, but {head} was read from it before", sequence=last + 1)
        if last == head:
            return
        async with contextlib.aclosing(self._ledger.follow(head)) as batches:
            async for entries in batches:
                for entry in entries:
                    self.sequencer.apply(entry.sequence, entry.body)
                if self.sequencer.state.head.sequence >= last:
                    return

    async def _check_inbox(self) -> None:
        """An inbox that has lost its end would give out sequences that count as read: let it go on behind them."""
        through = self.sequencer.read_through
        last = await self._observed.last_sequence()
        if last < through:
            _log.warning("the inbox ends at %d, but was read through %d: it goes on from there", last, through)
            await self._observed.move_past(through)

    # --- deciding -------------------------------------------------------------------------------------------------

    async def _decide(self, now_ns: int) -> None:
        draft = self.sequencer.draft(now_ns)
        if draft is not None:
            self._is_unclear = False
            end = await append_certainly(self._ledger, draft.expected, draft.body, on_unknown=self._note_unclear)
            if self._is_unclear:
                # Whatever happened meanwhile, the clock and the log are looked at anew before the next decision.
                self._contact_ns = 0
            if isinstance(end, Won):
                self.sequencer.committed()
            else:
                _log.info("record %d was another's; deciding again", end.sequence)
                self.sequencer.lost(end.sequence, end.body)
                self._contact_ns = 0
            await self._on_record(self.sequencer.state)
        if self.sequencer.state.head.sequence:
            self._begun.set()
        self._give_answers()
        self._room.set()
        self.on_settled()

    def _note_unclear(self) -> None:
        self._is_unclear = True

    def _give_answers(self) -> None:
        for reply in self.sequencer.replies:
            self.door.answer(reply.ticket, reply.answer)
        self.sequencer.replies.clear()

    def status(self) -> dict[str, int | str]:
        """Figures for whoever asks the service."""
        head = self.sequencer.state.head
        return {
            "writer": self.sequencer.writer,
            "sequence": head.sequence,
            "decider": head.decider,
            "trouble": self._trouble,
            "dropped_observations": self.dropped_observations.count,
            "waiting": self.sequencer.waiting,
            **self.door.counts,
        }
