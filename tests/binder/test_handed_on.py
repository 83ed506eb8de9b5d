"""Leases that change hands, as a host's binder knows them: which token may act there, heard of, written down or not."""

import random
from typing import Any

import pytest

from leasehold.events.event_types import DomainBond, LeaseGranted, LedgerRestored
from leasehold.events.identities import DeviceKey, Holder, Principal, device_id
from leasehold.events.position import token_of
from leasehold.events.refusals import RefusalCode
from leasehold.events.schedule_events import LeaseSwitched, LeaseTransferred
from leasehold.projections.vouching import check_token, may_have
from tests.binder.course import GPU, HOST, NIC, REF, SOUND, UUID, WEB, Course, kinds

SEEDS = 60


def code_of(course: Course, key: DeviceKey, token: int) -> str:
    """Why a token may not act on a device; empty: it may."""
    refusal = check_token(course.handing, key, token, course.now_ms)
    return refusal.code if refusal is not None else ""


def given(course: Course, lease: int, holder: str = "web2") -> int:
    """The lease goes to another holder: the new token."""
    ref, principal = REF, Principal("bob")
    event = LeaseTransferred(request=ref, lease=lease, principal=principal, tenant=principal, holder=Holder(holder))
    return course.happens(event)


def granted(course: Course, *keys: DeviceKey, **fields: Any) -> int:
    """A lease that is granted in another way than to one holder alone, who has it."""
    return course.happens(
        LeaseGranted(
            request=REF, tenant=Principal("ann"), holder=Holder("web1"), ttl_ms=1, expires_at_ns=1,
            devices=tuple(device_id(HOST, key) for key in keys), **fields,
        )
    )  # fmt: skip


# --- to another holder --------------------------------------------------------------------------------------------


def test_the_old_token_is_shut_out() -> None:
    """Once a transfer is heard, the old token acts on no device of the lease, and the floor stands in the notes."""
    course = Course()
    lease = course.grant(GPU, SOUND)
    course.settle()
    token = given(course, lease)
    course.jobs()
    for key in (GPU, SOUND):
        assert (code_of(course, key, lease), code_of(course, key, token)) == (RefusalCode.TOKEN_STALE, "")
    assert {note.key: note.floor for note in course.disk} == {GPU: token, SOUND: token}


def test_what_is_prepared_stays_so() -> None:
    """A device that was handed over is not taken back or prepared again because its lease has another holder."""
    course = Course()
    lease = course.grant(NIC)
    course.settle()
    given(course, lease)
    assert course.jobs() == []
    assert course.handing.is_ready(NIC)


def test_given_on_while_it_is_prepared() -> None:
    """What was begun for the holder before is done for the one now, and told of the same lease."""
    course = Course()
    lease = course.grant(NIC)
    job = course.job()
    course.begins(job)
    token = given(course, lease)
    course.succeeds(job)
    course.settle()
    assert course.handing.is_ready(NIC)
    assert course.fold.holds[NIC].prepared
    assert code_of(course, NIC, token) == ""


@pytest.mark.parametrize("is_heard_again", [False, True])
def test_after_its_death(is_heard_again: bool) -> None:
    """A binder that comes again with its notes lets the old token act nowhere, whether it reaches the log or not."""
    course = Course()
    lease = course.grant(NIC)
    course.settle()
    token = given(course, lease)
    course.jobs()
    course.dies()
    if is_heard_again:
        assert course.sync()
        assert code_of(course, NIC, token) == ""
        assert course.jobs() == [], "it is with its holder"
    assert code_of(course, NIC, lease) == RefusalCode.TOKEN_STALE


def test_not_heard_of() -> None:
    """A binder that missed the transfer vouches for the old token only as long as it may be out of date, and never
    again once it is told.
    """
    course = Course()
    lease = course.grant(NIC)
    course.settle()
    course.is_deaf = True
    token = given(course, lease)
    assert code_of(course, NIC, token) == RefusalCode.TOKEN_STALE
    course.now_ms += 60_000
    assert code_of(course, NIC, lease) == RefusalCode.HOST_STALE
    assert course.sync()
    assert (code_of(course, NIC, lease), code_of(course, NIC, token)) == (RefusalCode.TOKEN_STALE, "")


def test_the_door_follows_the_holder() -> None:
    """Of a lease for no domain, the domain that its new holder is may have the device, and the one before may not."""
    course = Course()
    lease = course.grant(NIC, holder="web1")
    course.settle()
    assert may_have(course.handing, UUID, "web1", [NIC], course.now_ms).refusal is None
    given(course, lease, "web2")
    assert may_have(course.handing, UUID, "web1", [NIC], course.now_ms).refusal is not None
    assert may_have(course.handing, UUID, "web2", [NIC], course.now_ms).refusal is None


def test_behind_a_restore_that_lost_it() -> None:
    """A restored ledger without the transfer gives the lease its token of the new era: the tokens of before, that of
    the transfer too, stay shut out here.
    """
    course = Course()
    lease = course.grant(NIC)
    course.settle()
    kept = course.holds()
    token = given(course, lease)
    course.jobs()
    course.era = 1
    course.happens(LedgerRestored(writer="r", era=1, through=1, reason="wiped", until_ns=0))
    revived = [hold for hold in kept if hold.key == NIC]
    renewed = token_of(1, lease)
    holds = [type(hold)(key=hold.key, floor=renewed, lease=lease, token=renewed, granted_at_ns=hold.granted_at_ns,
                        holder=hold.holder, prepared=True) for hold in revived]  # fmt: skip
    assert course.handing.synced(holds, course.picture, as_of=course.position, era=1, now_ms=course.now_ms)
    assert [code_of(course, NIC, each) for each in (lease, token)] == [RefusalCode.TOKEN_STALE] * 2
    assert code_of(course, NIC, renewed) == ""


def test_any_course() -> None:
    """However transfers, deaths, deafness and answers of the log come, no token but the newest ever acts, and floors on
    disk never go back.
    """
    for seed in range(SEEDS):
        rng = random.Random(seed)
        course = Course()
        lease = course.grant(NIC)
        tokens = [lease]
        course.settle()
        floor = 0
        for _ in range(30):
            match rng.randrange(5):
                case 0:
                    tokens.append(given(course, lease, f"web{len(tokens)}"))
                case 1:
                    course.jobs()
                    course.dies()
                case 2:
                    course.is_deaf = not course.is_deaf
                case 3:
                    assert course.sync(), f"seed {seed}"
                    course.is_deaf = False
                case _:
                    course.settle() if course.handing.log.is_synced and not course.is_deaf else course.jobs()
            acting = [each for each in tokens if code_of(course, NIC, each) == ""]
            assert len(acting) <= 1, f"seed {seed}"
            if (
                not course.is_deaf
                and course.handing.log.is_synced
                and course.handing.log.holds[NIC].token == tokens[-1]
            ):
                assert acting == tokens[-1:], f"seed {seed}"
            noted = max((note.floor for note in course.disk), default=0)
            assert noted >= floor, f"seed {seed}"
            floor = noted


# --- with a domain that moves -------------------------------------------------------------------------------------


def reserved(course: Course, *keys: DeviceKey) -> int:
    """Devices that are reserved in the place of some lease elsewhere, for the domain that moves."""
    return granted(course, *keys, reserved_for=512, bond=DomainBond(uuid=UUID))


def test_reserved_is_prepared_and_opens_nothing() -> None:
    """What is reserved is prepared as any lease; its token opens nothing, and its domain may not have it yet."""
    course = Course()
    lease = reserved(course, NIC)
    assert kinds(course.jobs()) == ["Prepare"]
    course = Course()
    lease = reserved(course, NIC)
    course.settle()
    assert course.fold.holds[NIC].prepared
    assert code_of(course, NIC, lease) == RefusalCode.LEASE_RESERVED
    verdict = may_have(course.handing, UUID, "web1", [NIC], course.now_ms)
    assert verdict.refusal is not None
    assert verdict.refusal.code is RefusalCode.LEASE_RESERVED
    assert "switch" in verdict.refusal.help


def test_the_switch_opens_it() -> None:
    """Behind the switch only the new token acts, and the domain may have the device at once."""
    course = Course()
    lease = reserved(course, NIC)
    course.settle()
    token = course.happens(LeaseSwitched(request=REF, lease=lease, source=512))
    assert course.jobs() == []
    assert (code_of(course, NIC, lease), code_of(course, NIC, token)) == (RefusalCode.TOKEN_STALE, "")
    verdict = may_have(course.handing, UUID, "web1", [NIC], course.now_ms)
    assert (verdict.refusal, verdict.is_ready, verdict.leases) == (None, True, (lease,))
    assert course.disk[0].floor == token


def test_a_reserved_lease_does_not_end_with_a_failed_move() -> None:
    """A hook that says that the domain has stopped here, where it never had what is reserved, ends no reservation."""
    course = Course()
    reserved(course, NIC)
    source = course.grant(GPU, domain=UUID)
    course.settle()
    assert course.handing.stopped(UUID) == [source]


def test_an_answer_says_that_it_is_reserved() -> None:
    """A binder that asks the log knows of the reservation as one that was told."""
    course = Course()
    lease = reserved(course, NIC)
    course.settle()
    course.dies()
    assert course.sync()
    assert code_of(course, NIC, lease) == RefusalCode.LEASE_RESERVED


# --- not alone ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["shared", "admin"])
def test_what_nobody_has_alone_is_handed_to_nobody(mode: str) -> None:
    """A lease that shares a device, or only looks on, makes a binder do nothing, and its token opens nothing."""
    course = Course()
    lease = granted(course, NIC, mode=mode)
    assert course.jobs() == []
    assert code_of(course, NIC, lease) == RefusalCode.TOKEN_STALE
    course.attach(NIC, WEB)
    course.release(lease)
    course.settle()
    assert course.told == []


def test_looking_on_disturbs_nobody() -> None:
    """A lease that only looks on, granted and ended beside one that has the device, leaves that one's as it is."""
    course = Course()
    lease = course.grant(NIC)
    course.settle()
    looks = granted(course, NIC, mode="admin")
    assert code_of(course, NIC, lease) == ""
    course.release(looks)
    assert code_of(course, NIC, lease) == ""
    assert course.jobs() == []
