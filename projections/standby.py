"""What a standby has heard and the ledger does not have yet: the requests that it decides if it has to take over.

Every allocator hears every request, and only one decides. The others keep what they hear until a record shows that it
has been decided; what is left when one of them takes over is decided by it, so that no request is lost with the decider
that died on it. Deciding one that was decided after all does no harm: the state remembers the answer.

The shell calls `hear` for each request while it does not decide, `seen` for each record that it folds, `forget` now
and then, and `take_over` when it begins to decide: what that hands out goes to `Sequencer.ask`. What waits in the
sequencer of a decider that becomes a standby is taken with `Sequencer.give_up_requests` and comes back here.
"""

from leasehold.events import codec, limits
from leasehold.events.identities import Principal, RequestKey, request_key
from leasehold.events.inputs import Asked, Request
from leasehold.events.record import Record
from leasehold.projections.handingon import changes_nothing
from leasehold.projections.state import State


class Standby:
    """Requests heard, at most `limits.REQUESTS_HEARD_MAX`: of more, the oldest are forgotten."""

    def __init__(self) -> None:
        # In the order of hearing. Asking again makes another ticket of the same key.
        self._heard: dict[int, tuple[Asked, RequestKey, int]] = {}
        self._tickets: dict[RequestKey, list[int]] = {}

    def __len__(self) -> int:
        return len(self._heard)

    def hear(self, ticket: int, principal: Principal, request: Request, heard_at_ns: int) -> int | None:
        """Keep a request; the ticket of the one that had to go for it, if there are too many.

        Args:
            ticket: The shell's own mark for where the answer goes, used once.
            heard_at_ns: By a clock that never goes back; the same as for `forget`.
        """
        assert ticket not in self._heard, ticket
        forgotten = None
        if len(self._heard) >= limits.REQUESTS_HEARD_MAX:
            forgotten = next(iter(self._heard))
            self._drop(forgotten)
        key = request_key(principal, request.request_id)
        self._heard[ticket] = (Asked(principal, request), key, heard_at_ns)
        self._tickets.setdefault(key, []).append(ticket)
        return forgotten

    def seen(self, record: Record) -> list[int]:
        """Drop what `record`, which was just folded, has decided: same principal, request id and words. The tickets."""
        dropped: list[int] = []
        if not self._heard:
            return dropped
        for step in record.steps:
            given = step.input
            if not isinstance(given, Asked):
                continue
            key = request_key(given.principal, given.request.request_id)
            for ticket in tuple(self._tickets.get(key, ())):
                if _same_words(self._heard[ticket][0].request, given.request):
                    self._drop(ticket)
                    dropped.append(ticket)
        return dropped

    def is_undecided(self, ticket: int, state: State) -> bool:
        """Whether the ledger does not have the request of this ticket: neither was it seen, nor has it an answer."""
        heard = self._heard.get(ticket)
        if heard is None:
            return False
        asked, key, _ = heard
        # A repetition leaves no record, nor does a renewal that changes nothing: the decider answers from the state.
        known = state.answers.get(key)
        if known is None:
            return not changes_nothing(state, asked, state.head.decided_at_ns)
        return known.body_hash != codec.body_hash(asked.request)

    def forget(self, older_than_ns: int) -> None:
        """Drop what was heard before `older_than_ns`."""
        while self._heard:
            ticket, (_, _, heard_at_ns) = next(iter(self._heard.items()))
            if heard_at_ns >= older_than_ns:
                return
            self._drop(ticket)

    def take_over(self) -> list[tuple[int, Asked]]:
        """Hand out all that is kept, in the order of hearing, and keep nothing."""
        handed = [(ticket, asked) for ticket, (asked, _, _) in self._heard.items()]
        self._heard.clear()
        self._tickets.clear()
        return handed

    def _drop(self, ticket: int) -> None:
        _, key, _ = self._heard.pop(ticket)
        left = self._tickets[key]
        left.remove(ticket)
        if not left:
            del self._tickets[key]


def _same_words(one: Request, other: Request) -> bool:
    # Mostly it is the very message; one that was asked again was issued at another time.
    return one == other or codec.body_hash(one) == codec.body_hash(other)
