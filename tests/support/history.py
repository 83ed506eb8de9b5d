"""Load on a real cluster that misbehaves, and the judge of what its clients were told.

    load = Load(connect, SUBJECTS, devices, seed=seed)
    async with load.running():
        ...  # kill, stop, partition
    await load.settle()  # what is still without a decision is asked again, under the same id
    problems = await load.check(ledger)
    print(load.figures())

Every worker is a principal with a connection of its own. It leases devices that others want too, renews, asks again
under the same id, releases or lets expire, one request at a time. All answers that ever come are kept, late and double
ones too, with the moments of asking and answering on one monotonic clock.
"""

import asyncio
import random
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from itertools import pairwise
from typing import Any

import msgspec

from leasehold.events import codec, event_types, inputs
from leasehold.events.answers import Answer
from leasehold.events.errors import UnavailableError
from leasehold.events.identities import Holder, Principal, RequestId, request_key
from leasehold.events.inputs import Request
from leasehold.events.position import end_of_record
from leasehold.events.refusals import RefusalCode
from leasehold.events.subjects import Subjects
from leasehold.projections import evolve
from leasehold.projections.answers import answer_for
from leasehold.projections.state import State
from leasehold.services.connection import Connection
from leasehold.services.ledger.port import Ledger
from tests.sim.linear import Operation, is_linearizable
from tests.support.told import NOT_FINAL, Asked, Figures, Told

Connect = Callable[[Principal], AbstractAsyncContextManager[Connection]]
"""A connection that may ask in this principal's name; closed at the end."""

ATTEMPT_S = 1.2
RETRY_S = 0.05
SETTLE_S = 60.0
LONG_TTL_MS = 600_000
SHORT_TTL_MS = 1_500
_LATEST = 500


class Load:
    """So many workers on a few devices, and all that they saw."""

    def __init__(
        self,
        connect: Connect,
        subjects: Subjects,
        devices: Sequence[str],
        *,
        seed: int,
        workers: int = 6,
        pace_s: float = 0.02,
    ) -> None:
        """`pace_s`: the pause between two requests of one worker, on average; it bounds what must be judged."""
        self.asked: list[Asked] = []
        self.seed = seed
        self._connect = connect
        self._subjects = subjects
        self._devices = tuple(devices)
        self._pace_s = pace_s
        self._names = [Principal(f"worker{number}") for number in range(workers)]
        self._stopping = asyncio.Event()
        self._renewed: dict[int, int] = {}
        self._lost = self._doubled = 0
        self._waits_s: list[float] = []
        self._silent = 0

    # --- running --------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Let the workers work; at the end each finishes the request that it is at, as far as it is answered."""
        self._stopping.clear()
        async with asyncio.TaskGroup() as tasks:
            for number, name in enumerate(self._names):
                tasks.create_task(self._work(name, random.Random(f"{self.seed} {number} {len(self.asked)}")))
            try:
                yield
            finally:
                self._stopping.set()

    async def _work(self, name: Principal, chance: random.Random) -> None:
        async with self._connect(name) as connection:
            worker = _Worker(self, name, connection, chance)
            await worker.open()
            while not self._stopping.is_set():
                await worker.turn()

    @property
    def stopping(self) -> bool:
        """The workers have been told to end."""
        return self._stopping.is_set()

    async def settle(self) -> None:
        """Ask again, under its own id, all that has no decision yet, until it has one (or a minute is over)."""
        undecided = [asked for asked in self.asked if asked.final is None]
        by_name: dict[Principal, list[Asked]] = {}
        for asked in undecided:
            by_name.setdefault(asked.principal, []).append(asked)
        async with asyncio.timeout(SETTLE_S):
            for name, theirs in by_name.items():
                await self._ask_again(name, theirs)

    async def ask_all_again(self) -> None:
        """Ask every request once more under its id; `check` then compares what is said now with what was said then."""
        theirs = ([asked for asked in self.asked if asked.principal == name] for name in self._names)
        await asyncio.gather(*map(self._ask_again, self._names, theirs))

    async def _ask_again(self, name: Principal, theirs: list[Asked]) -> None:
        async with self._connect(name) as connection:
            worker = _Worker(self, name, connection, random.Random(0))
            await worker.open()
            for asked in theirs:
                before = len(asked.told)
                while not any(each.answer.outcome not in NOT_FINAL for each in asked.told[before:]):
                    await worker.attempt(asked)

    async def first_decision(self, after_ns: int, timeout_s: float = 30.0) -> int:
        """When (`time.monotonic_ns`) a request sent after `after_ns` was first told a decision; waits for it."""
        async with asyncio.timeout(timeout_s):
            while True:
                moments = [
                    told.told_ns
                    for asked in self.asked[-_LATEST:]
                    for told in asked.told
                    if told.sent_ns > after_ns and told.answer.outcome not in NOT_FINAL
                ]
                if moments:
                    return min(moments)
                await asyncio.sleep(RETRY_S)

    # --- judging --------------------------------------------------------------------------------------------------

    async def check(self, ledger: Ledger) -> list[str]:
        """What is wrong with what was told, in words; empty if nothing is.

        1. Each device's history could have happened one step at a time.
        2. Each decision that was told stands in the ledger, at that position and with those words.
        3. No request was told two decisions, or has two effects.
        4. No answer is older than what anybody knew when it was asked for.
        """
        problems = self._check_order() + await _Judge(self).read(ledger)
        return problems + self._check_same() + self._check_devices()

    def _check_devices(self) -> list[str]:
        problems = []
        for device in self._devices:
            operations = [asked.operation for asked in self.asked if asked.operation is not None]
            history = [operation for operation in operations if device in operation.devices]
            if not is_linearizable(history, self._renewed):
                problems.append(f"the history of {device} could not have happened: {len(history)} operations")
        return problems

    def _check_order(self) -> list[str]:
        """Answers must know all that was told to anybody before they were asked for."""
        told = [(each.told_ns, each) for asked in self.asked for each in asked.told if each.answer.as_of]
        told.sort(key=lambda pair: pair[0])
        highest, known, moments = 0, [], []
        for told_ns, each in told:
            highest = max(highest, each.answer.position)
            moments.append(told_ns)
            known.append(highest)
        problems = []
        for _, each in told:
            index = bisect_left(moments, each.sent_ns)
            if index and each.answer.as_of < known[index - 1]:
                problems.append(f"stale: {each.answer} though {known[index - 1]} had been told before it was asked for")
        return problems

    def _check_same(self) -> list[str]:
        problems = []
        for asked in self.asked:
            said = {
                _core(each.answer)
                for each in asked.told
                if not _says_nothing(asked.request, each.answer) and _core(each.answer) not in asked.unwritten
            }
            if len(said) > 1:
                self._doubled += 1
                problems.append(f"{asked.principal}/{asked.request.request_id} was told {sorted(map(str, said))}")
        return problems

    def count_lost(self) -> None:
        """A decision that was told is not in the ledger."""
        self._lost += 1

    def count_doubled(self) -> None:
        """A request has two effects."""
        self._doubled += 1

    def waited(self, sent_ns: int, *, is_silent: bool) -> None:
        """A sending came to an end: with a first word, or with none though the connection held."""
        self._silent += is_silent
        if not is_silent:
            self._waits_s.append((time.monotonic_ns() - sent_ns) / 1e9)

    def renewed(self, lease: int, until_ns: int) -> None:
        """A renewal was told: the lease lives up to then at least, by our own clock."""
        self._renewed[lease] = max(self._renewed.get(lease, 0), until_ns)

    def figures(self) -> Figures:
        """Counts; `lost` and `doubled` are known after `check`."""
        moments = sorted(
            each.told_ns for asked in self.asked for each in asked.told if each.answer.outcome not in NOT_FINAL
        )
        gaps = [after - before for before, after in pairwise(moments)]
        answered = sum(asked.final is not None for asked in self.asked)
        return Figures(
            asked=len(self.asked),
            answered=answered,
            undecided=len(self.asked) - answered,
            lost=self._lost,
            doubled=self._doubled,
            outcomes=Counter(each.answer.outcome for asked in self.asked for each in asked.told),
            longest_gap_s=max(gaps, default=0) / 1e9,
            longest_wait_s=max(self._waits_s, default=0.0),
            silent=self._silent,
        )

    def begin(self, principal: Principal, request: Request, operation: Operation | None) -> Asked:
        """Note a request that is about to be sent."""
        asked = Asked(principal, request, operation)
        self.asked.append(asked)
        return asked

    @property
    def devices(self) -> tuple[str, ...]:
        """What is fought for."""
        return self._devices

    @property
    def subjects(self) -> Subjects:
        """Of the cluster that is asked."""
        return self._subjects

    @property
    def pace_s(self) -> float:
        """The pause between two requests of a worker, on average."""
        return self._pace_s


def _says_nothing(request: Request, answer: Answer) -> bool:
    """No decision, or of a renewal only that it is remembered no more: of each lease the last few are."""
    is_forgotten = answer.refusal is not None and answer.refusal.code == RefusalCode.REQUEST_TOO_OLD
    return answer.outcome in NOT_FINAL or (is_forgotten and isinstance(request, inputs.RenewRequest))


def _core(answer: Answer) -> tuple[object, ...]:
    """What must never be told otherwise: a lease's state may change, the decision may not."""
    code = answer.refusal.code if answer.refusal else ""
    return (answer.outcome, answer.position, answer.lease, code)


class _Worker:
    """One principal on one connection, with one request at a time."""

    def __init__(self, load: Load, name: Principal, connection: Connection, chance: random.Random) -> None:
        self._load = load
        self._name = name
        self._connection = connection
        self._chance = chance
        self._inbox = ""
        self._attempts: dict[bytes, tuple[Asked, int]] = {}
        self._kept: deque[tuple[int, Answer]] = deque()
        self._unheard: set[bytes] = set()
        self._something = asyncio.Event()

    async def open(self) -> None:
        self._inbox = self._connection.new_inbox()
        await self._connection.listen(f"{self._inbox}.*", self._take)

    def _take(self, subject: bytes, _reply: bytes, body: bytes, headers: bytes | None) -> None:
        if headers and not body:
            # Nobody listens (503): no answer.
            self._unheard.add(subject)
            self._something.set()
            return
        asked, sent_ns = self._attempts[subject]
        told = Told(sent_ns, time.monotonic_ns(), msgspec.json.decode(body, type=Answer))
        was_final = asked.final is not None
        asked.told.append(told)
        if told.answer.outcome not in NOT_FINAL and not was_final:
            self._note(asked, told)
        self._something.set()

    def _note(self, asked: Asked, told: Told) -> None:
        answer, operation = told.answer, asked.operation
        if operation is not None:
            is_done = answer.outcome in ("granted", "released")
            operation.finish(told.told_ns, ok=is_done, lease=answer.lease if is_done else 0)
        elif answer.outcome == "renewed":
            assert isinstance(asked.request, inputs.RenewRequest)
            self._load.renewed(answer.lease, asked.called_ns + asked.request.ttl_ms * 10**6)

    async def attempt(self, asked: Asked) -> Answer | None:
        """Send it once, and wait for the first answer to this sending."""
        subject = self._load.subjects.request(self._name, codec.verb_of(asked.request))
        reply = f"{self._inbox}.{len(self._attempts)}"
        before, sent_ns, reconnects = len(asked.told), time.monotonic_ns(), self._connection.stats["reconnects"]
        self._attempts[reply.encode()] = (asked, sent_ns)
        self._something.clear()
        try:
            await self._connection.publish(subject, codec.encode(asked.request), reply)
            async with asyncio.timeout(ATTEMPT_S):
                while len(asked.told) == before and reply.encode() not in self._unheard:
                    self._something.clear()
                    await self._something.wait()
            self._load.waited(sent_ns, is_silent=False)
        except UnavailableError:
            pass
        except TimeoutError:
            # A connection that breaks tells the client so, and it waits no longer.
            if self._connection.is_connected and self._connection.stats["reconnects"] == reconnects:
                self._load.waited(sent_ns, is_silent=True)
        final = next((each.answer for each in asked.told[before:] if each.answer.outcome not in NOT_FINAL), None)
        if final is None:
            await asyncio.sleep(RETRY_S)
        return final

    async def _ask(self, request: Request, operation: Operation | None) -> Answer | None:
        """Ask until there is a decision; `None` if the load ends before."""
        asked = self._load.begin(self._name, request, operation)
        while True:
            answer = await self.attempt(asked)
            if answer is not None:
                if self._chance.random() < 0.05:
                    # The same once more: it must come to the same.
                    await self.attempt(asked)
                return answer
            if self._load.stopping:
                return None

    async def turn(self) -> None:
        """A lease from its grant to its end, or a refusal."""
        chance = self._chance
        while self._kept and self._kept[0][0] < time.monotonic_ns():
            await self._release(self._kept.popleft()[1])
        devices = tuple(chance.sample(self._load.devices, chance.choice((1, 1, 2))))
        ttl_ms = SHORT_TTL_MS if chance.random() < 0.1 else LONG_TTL_MS
        granted = await self._lease(devices, ttl_ms)
        await self._pause()
        if granted is None or granted.outcome != "granted" or granted.state != "living":
            return
        while chance.random() < 0.4:
            renew = inputs.RenewRequest(**_of(granted, self._new_id()), ttl_ms=ttl_ms)
            await self._ask(renew, None)
            await self._pause()
        if ttl_ms == LONG_TTL_MS or chance.random() < 0.5:
            await self._release(granted)
        else:
            # Let it expire; within a grace time it does not, and then it is given back late.
            self._kept.append((time.monotonic_ns() + 2 * ttl_ms * 10**6, granted))

    async def _release(self, granted: Answer) -> None:
        request = inputs.ReleaseRequest(**_of(granted, self._new_id()))
        await self._ask(request, Operation("release", granted.devices, time.monotonic_ns(), lease=granted.lease))
        await self._pause()

    async def _lease(self, devices: tuple[str, ...], ttl_ms: int) -> Answer | None:
        request = inputs.LeaseRequest(
            request_id=self._new_id(),
            issued_at_ns=time.time_ns(),
            devices=devices,
            holder=Holder(f"vm {self._name}"),
            ttl_ms=ttl_ms,
        )
        operation = Operation("acquire", devices, time.monotonic_ns(), ttl_ns=ttl_ms * 10**6)
        return await self._ask(request, operation)

    def _new_id(self) -> RequestId:
        return RequestId(f"r{self._load.seed:x}-{len(self._load.asked)}")

    async def _pause(self) -> None:
        await asyncio.sleep(self._chance.uniform(0, 2 * self._load.pace_s))


def _of(granted: Answer, request_id: RequestId) -> dict[str, Any]:
    return {
        "request_id": request_id,
        "issued_at_ns": time.time_ns(),
        "lease": granted.lease,
        "token": granted.token,
    }


class _Judge:
    """Folds the whole ledger once, and compares each answer with what it says where the answer stood."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._problems: list[str] = []
        self._effects: Counter[str] = Counter()
        self._waiting: dict[int, list[tuple[Asked, Answer]]] = {}
        for asked in load.asked:
            for each in asked.told:
                if each.answer.outcome not in NOT_FINAL:
                    self._waiting.setdefault(each.answer.as_of, []).append((asked, each.answer))

    async def read(self, ledger: Ledger) -> list[str]:
        state = State()
        last = await ledger.last_sequence()
        async with aclosing(ledger.follow(0)) as batches:
            async for entries in batches:
                for entry in entries:
                    record = evolve.fold(state, entry.sequence, entry.body)
                    for step in record.steps:
                        self._count(step.events)
                    self._compare(state, self._waiting.pop(end_of_record(entry.sequence), ()))
                if state.head.sequence >= last:
                    break
        for as_of, answers in self._waiting.items():
            self._load.count_lost()
            self._problems.append(f"the ledger does not reach {as_of}, as was told in {answers[0][1]}")
        for key, count in self._effects.items():
            if count > 1:
                self._load.count_doubled()
                self._problems.append(f"{key} has {count} effects")
        return self._problems

    def _count(self, events: Sequence[event_types.Event]) -> None:
        for event in events:
            if isinstance(event, event_types.LeaseGranted | event_types.LeaseReleased):
                self._effects[f"{event.request.principal}/{event.request.request_id} {type(event).__name__}"] += 1

    def _compare(self, state: State, told: Sequence[tuple[Asked, Answer]]) -> None:
        for asked, answer in told:
            known = answer_for(state, request_key(asked.principal, asked.request.request_id))
            if known is not None and _core(known) == _core(answer):
                continue
            if isinstance(asked.request, inputs.RenewRequest) and _is_covered(state, asked.request, answer):
                asked.unwritten.add(_core(answer))
            else:
                self._load.count_lost()
                self._problems.append(f"told {answer}, but the ledger says {known}")


def _is_covered(state: State, request: inputs.RenewRequest, answer: Answer) -> bool:
    """Whether a renewal was told that changes nothing, since the lease is kept for as long already: up to the time that
    was told, unless it has ended within the same record.
    """
    lease = state.leases.get(request.lease)
    if answer.outcome != "renewed" or lease is None or lease.token != request.token:
        return False
    return bool(lease.ended) or lease.expires_at_ns == answer.expires_at_ns
