"""What is to become of a request that waits: what is kept for it meanwhile, and under what it is found again.

Kept is what it would have if nobody had leased anything, but for what is kept for those who come before it: what is
free of that, and what is not free yet. If it could not have all even then (a device is missing, or there are too few),
it keeps nothing from others; neither does who has as much as his tenant may.
"""

from collections.abc import Iterator
from typing import Final

import msgspec

from leasehold.events import limits
from leasehold.events.identities import DeviceId, Principal, RequestRef
from leasehold.events.inputs import LeaseRequest
from leasehold.events.refusals import Refusal, RefusalCode
from leasehold.projections import buckets, granting, quotas
from leasehold.projections.conflicts import CODE_OF_RULE, first_blockers
from leasehold.projections.declining import Declined
from leasehold.projections.searching import Found, search
from leasehold.projections.state import State
from leasehold.projections.terms import Terms

TENANT: Final = "tenant:"
CLASS: Final = "class:"
_HOLDERS: Final = frozenset(
    {
        RefusalCode.DEVICE_HELD,
        RefusalCode.DEVICE_IN_USE,
        RefusalCode.DEVICE_SHARED,
        RefusalCode.DEVICE_UNCLEAN,
        RefusalCode.HOST_STALE,
    }
)
"""Those that tell who has a device now, or what is soon over by itself: it may be kept all the same."""


class Outlook(msgspec.Struct, frozen=True):
    """What is to be kept for a request, under what it is to be found, why it is not granted, and what it cost to say
    so, in steps.
    """

    keeps: tuple[DeviceId, ...]
    buckets: tuple[str, ...]
    why: Refusal
    steps: int


def outlook(
    state: State,
    ref: RequestRef,
    asked: LeaseRequest,
    terms: Terms,
    why: Refusal,
    kept: frozenset[DeviceId],
) -> Outlook:
    """What may become of a request that is declined because of `why`."""
    steps = why.search.steps if why.search is not None else 1
    found = buckets.of_request(state, asked, terms.tenant)
    if why.code == RefusalCode.QUOTA_EXCEEDED:
        # Its tenant has enough, so others are not kept from what it would have. Where any devices would count, it
        # is found only when its tenant has less, or may have more.
        if over_quota(state, asked, terms.tenant) is not None:
            found = tuple(word for word in found if word.startswith((TENANT, CLASS)))
        return Outlook((), found, why, steps)
    if asked.mode == "admin" or is_far_behind(state, found, terms.rank_ns, terms.queued):
        return Outlook((), found, why, steps)
    keeps, more = _keeps(state, ref, asked, terms, kept)
    is_over = kept_over_quota(state, keeps, terms.tenant)
    if is_over is not None:
        return Outlook((), found, is_over, steps + more)
    return Outlook(keeps, found, why, steps + more)


def is_far_behind(state: State, words: tuple[str, ...], rank_ns: int, queued: int) -> bool:
    """Whether so many who may want the same come before a place (`queued` 0: of somebody new) that nothing is kept."""
    place = (rank_ns, queued or 2**63)
    meant = (word for word in words if not word.startswith((TENANT, CLASS)))
    return sum(state.indexes.queued.before(word, place) for word in meant) >= limits.KEEPERS_MAX


def kept_over_quota(state: State, keeps: tuple[DeviceId, ...], tenant: Principal) -> Refusal | None:
    """Why a tenant may not have these devices, whoever has them now."""
    charged = quotas.charges(state, tenant, keeps)
    return charged.refusal if isinstance(charged, Declined) else None


def over_quota(state: State, asked: LeaseRequest, tenant: Principal) -> Refusal | None:
    """Why, whatever devices were found for it, a request would be too much for its tenant; `None`: it need not be."""
    for device_class, count in _least_charged(asked) if asked.mode != "admin" else ():
        quota = state.quotas.get((tenant, device_class))
        if quota is not None and count > quota.left:
            return quotas.exceeded(tenant, device_class, quota, count)
    return None


def least_of(asked: LeaseRequest) -> list[int]:
    """Of each need, how many devices it would have at least."""
    return [min((each.count for each in need.first_of), default=need.count) for need in asked.needs]


def _least_charged(asked: LeaseRequest) -> Iterator[tuple[str, int]]:
    """Of all classes (the empty one), and of those that a request names, how many devices it would have at least."""
    least = least_of(asked)
    yield "", sum(least) or 1
    by_class: dict[str, int] = {}
    for need, count in zip(asked.needs, least, strict=True):
        names = {option.device_class for option in (need.first_of or (need,))}
        if len(names) == 1:
            name = names.pop()
            by_class[name] = by_class.get(name, 0) + count
    by_class.pop("", None)
    yield from sorted(by_class.items())


def _keeps(
    state: State, ref: RequestRef, asked: LeaseRequest, terms: Terms, kept: frozenset[DeviceId]
) -> tuple[tuple[DeviceId, ...], int]:
    """What a request would have if nobody had leased anything, and nobody kept anything who comes behind it; none, if
    it could not have all even then. And what it cost to say so, in steps.
    """
    owner = (ref.principal, asked.holder)
    if asked.devices:
        return _named_keeps(state, owner, asked, terms), 1
    found = search(state, asked, terms, owner=owner, ignoring_holders=True, prefer=kept)
    if isinstance(found, Found):
        return found.devices, found.search.steps
    return (), found.refusal.search.steps if found.refusal.search is not None else 1


def _named_keeps(
    state: State, owner: tuple[str, str], asked: LeaseRequest, terms: Terms
) -> tuple[DeviceId, ...]:
    devices = granting.named(state, asked)
    if isinstance(devices, Declined):
        return ()
    found = first_blockers(state, devices, owner=owner, force=asked.force, terms=terms)
    return devices if all(CODE_OF_RULE[each.rule] in _HOLDERS for each in found) else ()
