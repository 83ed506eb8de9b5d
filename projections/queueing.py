"""Requests that wait, as events move them. Who comes next: `waiting`.

A device is kept for one request at most: who comes first takes it from who comes later, who then is looked at again.
"""

from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from leasehold.events import event_types, schedule_events
from leasehold.events.identities import DeviceId, request_key
from leasehold.events.position import queued_id_text
from leasehold.events.refusals import Refusal, RefusalCode
from leasehold.projections import remembering
from leasehold.projections.rows import AnswerState, QueuedState
from leasehold.projections.state import State
from leasehold.projections.stirring import DEVICE, stir, with_relatives

_replace: Final = msgspec.structs.replace


def _queued(state: State, position: int, at_ns: int, event: schedule_events.RequestQueued) -> None:
    """It waits from here on; its answer is remembered until it waits no more."""
    ref = event.request
    key = request_key(ref.principal, ref.request_id)
    row = QueuedState(
        principal=ref.principal,
        tenant=event.tenant,
        request=key,
        body_hash=ref.body_hash,
        asked=event.asked,
        rank_ns=event.rank_ns,
        queued_at_ns=at_ns,
        until_ns=event.until_ns,
        keeps=event.keeps,
        buckets=event.buckets,
        why=event.why,
    )
    state.put_queued(position, row)
    answer = AnswerState(
        body_hash=ref.body_hash, verb="lease", position=position, issued_at_ns=ref.issued_at_ns, queued=position
    )
    state.answers.put(key, answer)


def _moved(state: State, position: int, _at_ns: int, event: schedule_events.QueuedMoved) -> None:
    """Other devices are kept for it, or it is found under others."""
    row = state.queue[event.queued]
    why = event.why or row.why
    buckets = row.buckets if event.buckets is msgspec.UNSET else event.buckets
    state.put_queued(event.queued, _replace(row, keeps=event.keeps, buckets=buckets, why=why))
    if set(event.keeps) < set(row.keeps):  # another has taken it, and others may be kept instead
        _look_again(state, position, event.queued, row)
    _let_go(state, position, event.queued, row, (each for each in row.keeps if each not in event.keeps))


def _looked(state: State, _position: int, _at_ns: int, event: schedule_events.QueueLooked) -> None:
    """What was noted up to there is done; of what comes next, who waits up to that place has been looked at."""
    stirs = state.indexes.stirs
    while stirs and stirs[0] <= event.through:
        state.stirred.drop(stirs.shift())
    head = state.head
    state.set_head(_replace(head, looked_rank_ns=event.rank_ns, looked_queued=event.queued, unlooked_since_ns=0))


def _withdrawn(state: State, position: int, at_ns: int, event: schedule_events.RequestWithdrawn) -> None:
    """It was taken back, by who asked or by an operator."""
    ref = event.request
    row = state.queue[event.queued]
    by = f" by {ref.principal}" if ref.principal != row.principal else ""
    said = f": {event.reason}" if event.reason else ""
    why = Refusal(
        code=RefusalCode.WITHDRAWN, message=f"it was taken back{by}{said}", help="ask anew, with another request id"
    )
    _over(state, position, at_ns, event.queued, why)
    answer = AnswerState(
        body_hash=ref.body_hash,
        verb="revoke" if by else "withdraw",
        position=position,
        issued_at_ns=ref.issued_at_ns,
        queued=event.queued,
    )
    remembering.remember_ended(state, at_ns, ref, answer)


def _ended(state: State, position: int, at_ns: int, event: schedule_events.WaitingEnded) -> None:
    """Its time was over."""
    seconds = (state.queue[event.queued].until_ns - state.queue[event.queued].queued_at_ns) // 10**9
    why = Refusal(
        code=RefusalCode.WAITED_IN_VAIN,
        message=f"it waited for {seconds} s in vain: {event.why.message}",
        blockers=event.why.blockers,
        help=event.why.help,
        search=event.why.search,
    )
    _over(state, position, at_ns, event.queued, why)


def granted(state: State, position: int, event: event_types.LeaseGranted) -> None:
    """A lease was granted, to somebody who has waited or to somebody new: for nobody are its devices kept any more."""
    if not state.queue:
        return
    queued = event.queued or 0
    taken = event.devices if event.mode != "admin" else ()
    for device in taken:
        keeper = state.indexes.kept.get(device, queued)
        if keeper != queued:
            _lose(state, position, keeper, device)
    if queued:
        row = state.queue[queued]
        state.drop_queued(queued)
        _let_go(state, position, queued, row, dict.fromkeys((*row.keeps, *taken)))


def _lose(state: State, position: int, queued: int, device: DeviceId) -> None:
    """A device is not kept for a waiting request any more, which is looked at again: others may be."""
    row = state.queue[queued]
    state.put_queued(queued, _replace(row, keeps=tuple(each for each in row.keeps if each != device)))
    _look_again(state, position, queued, row)


def _look_again(state: State, position: int, queued: int, row: QueuedState) -> None:
    stir(state, position, queued_id_text(queued), behind=(row.rank_ns, queued - 1))


def _let_go(state: State, position: int, queued: int, row: QueuedState, devices: Iterable[DeviceId]) -> None:
    """Who comes behind a place may have these devices, or keep them, from here on."""
    words = (word for device in devices for word in with_relatives(state, f"{DEVICE}{device}"))
    stir(state, position, *words, behind=(row.rank_ns, queued))


def _over(state: State, position: int, at_ns: int, queued: int, why: Refusal) -> None:
    row = state.queue[queued]
    state.drop_queued(queued)
    _let_go(state, position, queued, row, row.keeps)
    answer = AnswerState(
        body_hash=row.body_hash,
        verb="lease",
        position=position,
        issued_at_ns=row.asked.issued_at_ns,
        queued=queued,
        refusal=why,
    )
    state.answers.put(row.request, answer)
    remembering.fade(state, at_ns, row.principal, row.request)


HANDLERS: Final[dict[type[Any], Callable[[State, int, int, Any], None]]] = {
    schedule_events.RequestQueued: _queued,
    schedule_events.QueuedMoved: _moved,
    schedule_events.QueueLooked: _looked,
    schedule_events.RequestWithdrawn: _withdrawn,
    schedule_events.WaitingEnded: _ended,
}
"""By type of event; see `evolve`."""
