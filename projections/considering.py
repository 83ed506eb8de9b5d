"""How a request would be decided now: decided, the state moved over it, answered, and all of it taken back."""

from typing import Final

import msgspec

from leasehold.events.answers import Answer
from leasehold.events.identities import Principal, RequestId, request_key
from leasehold.events.inputs import Asked, Request
from leasehold.events.position import position_of
from leasehold.events.schedule_views import Broken
from leasehold.projections import previews
from leasehold.projections.answers import answer_to
from leasehold.projections.decide import decide
from leasehold.projections.state import State

_replace: Final = msgspec.structs.replace
_ID: Final = "considered"


def considered(state: State, principal: Principal, request: Request, now_ns: int) -> tuple[Answer, list[Broken]]:
    """The answer that `principal` would get to `request` at `now_ns`, and the living leases that would end by it, or be
    given notice of their end: exactly these.

    Whatever its id and its time are, it is taken for new. What would only come to be has no id yet: 0. The state is as
    before; no journal may be open.
    """
    asked = Asked(principal, _replace(request, request_id=_new_id(state, principal), issued_at_ns=now_ns))
    events = decide(state, asked, now_ns) or []
    position, at_ns = position_of(state.head.sequence + 1, 0), state.at_ns
    state.journal.begin()
    try:
        broken = previews.moved_over(state, position, now_ns, events)
        answer = answer_to(state, asked, request_key(principal, asked.request.request_id), position)
    finally:
        state.roll_back()
        state.at_ns = at_ns
    return _without_ids(answer, position, request.request_id), broken


def _new_id(state: State, principal: Principal) -> RequestId:
    """One that `principal` has not used, as far as that is remembered."""
    number = 0
    while request_key(principal, RequestId(f"{_ID}-{number}")) in state.answers:
        number += 1
    return RequestId(f"{_ID}-{number}")


def _without_ids(answer: Answer, position: int, request_id: str) -> Answer:
    """The answer without what nobody has been given."""
    return _replace(
        answer,
        request_id=request_id,
        position=answer.position if answer.position < position else 0,
        lease=answer.lease if answer.lease < position else 0,
        queued=answer.queued if answer.queued < position else 0,
        order=answer.order if answer.order < position else 0,
        token=0,
    )
