"""What is remembered of requests, so that asking again is safe: the answers, and for how long they are kept."""

from typing import Final

import msgspec

from leasehold.events import event_types, limits
from leasehold.events.identities import Principal, RequestKey, RequestRef, request_key
from leasehold.events.refusals import Refusal, RefusalCode
from leasehold.projections.rows import AnswerState, Fading, PrincipalState, RecentRefusal
from leasehold.projections.state import State

_replace: Final = msgspec.structs.replace
TOO_OLD: Final = Refusal(
    code=RefusalCode.REQUEST_TOO_OLD,
    message="the request was issued so long ago that an answer to it may have been forgotten",
    help="look at what you hold, then ask anew; if it was issued just now, the clock there is behind",
)


def refused(state: State, position: int, at_ns: int, event: event_types.RequestRefused) -> None:
    """A refusal: answered again for as long as its request may come again, and counted for as long as it is fresh."""
    ref = event.request
    _remember_refused(state, position, at_ns, ref, event.verb, event.refusal)
    fingerprint = refusal_fingerprint(ref.principal, event.verb, event.about, event.refusal)
    stale = state.indexes.refusal_prints.get(fingerprint)
    if stale is not None:
        state.refusals.drop(stale)
    row = RecentRefusal(fingerprint, event.refusal, event.verb, event.about, at_ns, 0)
    state.refusals.put(position, row)
    state.indexes.refusal_prints.put(fingerprint, position)
    state.indexes.refusal_queue.push(position)
    _forget_refusals(state, at_ns)


def _forget_refusals(state: State, at_ns: int) -> None:
    queue = state.indexes.refusal_queue
    while queue:
        oldest = queue[0]
        row = state.refusals.get(oldest)
        if row is not None:
            is_fresh = at_ns - row.at_ns <= limits.REFUSAL_WINDOW_NS
            if is_fresh and len(state.refusals) <= limits.REFUSALS_TRACKED_MAX:
                break
            state.refusals.drop(oldest)
            state.indexes.refusal_prints.drop(row.fingerprint)
        queue.shift()


def repeated(state: State, position: int, at_ns: int, event: event_types.RefusalsRepeated) -> None:
    """A fresh refusal was given once more."""
    row = state.refusals[event.first]
    _remember_refused(state, position, at_ns, event.request, row.verb, row.refusal)
    state.refusals.put(event.first, _replace(row, count=event.count))


def _remember_refused(
    state: State, position: int, at_ns: int, ref: RequestRef, verb: str, refusal: Refusal
) -> None:
    answer = AnswerState(
        body_hash=ref.body_hash, verb=verb, position=position, issued_at_ns=ref.issued_at_ns, refusal=refusal
    )
    remember_ended(state, at_ns, ref, answer)


def refusal_fingerprint(principal: Principal, verb: str, about: tuple[str, ...], refusal: Refusal) -> str:
    """What makes two refusals equal: who, what, about what, why, and the leases in the way."""
    leases = ",".join(str(blocker.lease) for blocker in refusal.blockers)
    return "\n".join((principal, verb, refusal.code, refusal.message, leases, *about))


def remember_ended(state: State, at_ns: int, ref: RequestRef, answer: AnswerState) -> None:
    """Remember the answer to a request whose matter is over, for as long as it could be asked again."""
    key = request_key(ref.principal, ref.request_id)
    if key in state.answers:  # another body under a known id was refused: the first answer stands
        return
    state.answers.put(key, answer)
    fade(state, at_ns, ref.principal, key)


def id_reused(request_id: str) -> Refusal:
    """The refusal of another body under an id that is known."""
    return Refusal(
        code=RefusalCode.REQUEST_ID_REUSED,
        message=f"request id {request_id} was used for another request",
        help="use a new request id for a new request",
    )


_NOTHING_YET: Final = PrincipalState()


def fade(state: State, at_ns: int, principal: Principal, key: RequestKey) -> None:
    """From now on `key` may be forgotten when its time is over, or when too much is remembered of its principal."""
    row = state.principals.get(principal, _NOTHING_YET)
    state.fading.put((principal, row.next), Fading(key, at_ns + limits.REQUEST_KEPT_NS))
    first, last, horizon_ns = row.first, row.next + 1, row.horizon_ns
    # Two at most go for each that comes: bounded work, and the backlog still shrinks.
    for _ in range(2):
        oldest = state.fading[principal, first]
        is_over = oldest.forget_at_ns <= at_ns
        if not is_over and last - first <= limits.REQUESTS_KEPT_PER_PRINCIPAL_MAX:
            break
        if not is_over:
            horizon_ns = max(horizon_ns, state.answers[oldest.key].issued_at_ns)
        _forget(state, oldest.key)
        state.fading.drop((principal, first))
        first += 1
    state.principals.put(principal, PrincipalState(first, last, horizon_ns))


def _forget(state: State, key: RequestKey) -> None:
    answer = state.answers[key]
    state.answers.drop(key)
    lease = state.leases.get(answer.lease) if answer.verb == "lease" else None
    if lease is not None and not lease.held:
        state.drop_lease(answer.lease)
