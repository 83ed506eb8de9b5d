"""Why a request, a lease, a device or a class stands as it does: what was looked at, which rule excluded what, and what
would have to change. Nothing is decided here: it is searched once more, as it would be now.
"""

from collections.abc import Iterator
from typing import Final

from leasehold.events.answers import Answer
from leasehold.events.identities import DeviceId, Holder, Principal, RequestId, tenant_of
from leasehold.events.inputs import LeaseRequest
from leasehold.events.position import lease_id_text, queued_id_text
from leasehold.events.refusals import Blocker, Refusal
from leasehold.events.schedule_views import Explanation
from leasehold.events.scheduling import Need, Search
from leasehold.projections import conflicts, granting, schedulelists, searching, waiting
from leasehold.projections.answers import lease_word
from leasehold.projections.scheduletelling import listed, wanted_text
from leasehold.projections.searching import Found
from leasehold.projections.state import State
from leasehold.projections.terms import Terms

QUEUED: Final = "queued"
GRANTED: Final = "granted"
REFUSED: Final = "refused"
DEVICE: Final = "device"
CLASS: Final = "class"
ORDER: Final = "devices are tried by host and key: the first ones with which all needs can be satisfied are chosen"


# --- a request ----------------------------------------------------------------------------------------------------


def of_queued(state: State, queued: int) -> Explanation:
    """Why somebody waits still, and what a search finds for him now."""
    row = state.queue[queued]
    now, refusal = None, row.why
    if row.asked.needs:
        terms = waiting.terms_of_waiting(queued, row)
        now, found = _searched(state, row.asked, terms, row.principal)
        refusal = found or refusal
    place, ahead = waiting.place(state, queued), waiting.ahead(state, queued)
    behind = f", behind {ahead} that could want the same" if ahead else ", and nobody before it could want the same"
    kept = f", with {listed(row.keeps)} kept for it" if row.keeps else ""
    text = (
        f"{queued_id_text(queued)} of {row.asked.holder} waits for {wanted_text(row.asked)} at place {place}{behind}"
        f"{kept}: {refusal.message}"
    )
    return Explanation(of=QUEUED, text=text, then=row.why.search, now=now, refusal=refusal, order=_order(now))


def _searched(
    state: State, request: LeaseRequest, terms: Terms, principal: Principal
) -> tuple[Search | None, Refusal | None]:
    """How devices are found for a request now, and why none are."""
    found = searching.search(state, request, terms, owner=(principal, request.holder), thorough=True)
    if isinstance(found, Found):
        return found.search, None
    return found.refusal.search, found.refusal


def of_answer(state: State, answer: Answer) -> Explanation | None:
    """Why a request was answered so; `None`: there is nothing to be said of it."""
    if answer.outcome == QUEUED and answer.queued in state.queue:
        return of_queued(state, answer.queued)
    if answer.refusal is not None:
        text = f"refused ({answer.refusal.code}) at position {answer.position}: {answer.refusal.message}"
        return Explanation(of=REFUSED, text=text, then=answer.refusal.search, refusal=answer.refusal)
    return of_lease(state, answer.lease) if answer.lease in state.leases else None


def of_lease(state: State, lease: int) -> Explanation:
    """Why somebody has these devices, and no others."""
    row = state.leases[lease]
    how = "found by what was needed" if row.search is not None else "named in the request"
    text = (
        f"{lease_id_text(lease)} of {row.holder} was granted {listed(row.devices)}, {how}; it is {lease_word(row)}"
        f"{f' ({row.ended})' if row.ended else ''}"
    )
    return Explanation(of=GRANTED, text=text, then=row.search, order=_order(row.search))


def _order(search: Search | None) -> tuple[str, ...]:
    """What decided which devices were chosen; nothing where none were."""
    if search is None or not any(need.devices for need in search.needs):
        return ()
    return (ORDER, *_preferences(search))


def _preferences(search: Search) -> Iterator[str]:
    for need in search.needs:
        if need.option > 1:
            yield f"need {need.need}: its option {need.option}, for those before it could not be had with all others"


# --- devices and classes ------------------------------------------------------------------------------------------


def of_device(state: State, device: DeviceId, owner: tuple[Principal, str]) -> tuple[Explanation, tuple[Blocker, ...]]:
    """What would stand in the way of a lease of a device by `owner` (principal, holder) who comes now."""
    physical = conflicts.physical_device(device)
    terms = Terms(tenant=tenant_of(owner[0]))
    found = conflicts.first_blockers(state, (physical,), owner=owner, force=False, terms=terms)
    text = "; ".join(blocker.why for blocker in found) or "nothing stands in the way"
    if physical != device:
        text = f"it is a part of {physical}, which is what a lease is for: {text}"
    refusal = granting.refusal_of(found) if found else None
    return Explanation(of=DEVICE, text=text, refusal=refusal), found


def of_class(state: State, name: str, owner: tuple[Principal, str], now_ns: int) -> Explanation:
    """How the devices of a class stand, and what keeps those that are not free from being leased by `owner`, who comes
    now: it is searched for one more than are free.
    """
    view, _ = schedulelists.class_view(state, name)
    asked = LeaseRequest(
        request_id=RequestId("explained"),
        issued_at_ns=now_ns,
        holder=Holder(owner[1] or owner[0]),
        ttl_ms=0,
        needs=(Need(device_class=name, count=view.free + 1),),
    )
    now, refusal = _searched(state, asked, Terms(tenant=tenant_of(owner[0])), owner[0])
    more = " at least" if view.is_cut_off else ""
    text = (
        f"class {name} ({view.select}) has{more} {view.devices} devices: {view.free} free, {view.leased} leased, "
        f"{view.kept} kept for who waits, {view.out} out of use; waiting requests that name it: {view.queued}"
    )
    return Explanation(of=CLASS, text=text, now=now, refusal=refusal if not view.free else None)
