"""What the audit says of waiting, sharing, quotas, marks and leases that change hands: nothing of a log that was
decided by the rules, and each breach of one that was decided by a core with a deliberate fault.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest

from leasehold.events import codec, inputs, schedule_inputs
from leasehold.events.answers import Answer
from leasehold.events.errors import CorruptLedgerError
from leasehold.events.identities import DeviceKey, Holder, Principal
from leasehold.events.scheduling import Need
from leasehold.projections.auditing import Audit
from tests.projections.ledger import SECOND, A, B, Ledger, device, ledger_with_hosts
from tests.sim import schedule_mutations as faults

OP = Principal("op")
ONE, OTHER = "01:00.0", "0a:00.0"
"""Two devices that are tied to nothing that anybody has here."""


def _say(ledger: Ledger, kind: type[Any], by: Principal = OP, /, **fields: Any) -> Answer:
    return ledger.ask(kind(request_id=ledger.new_id(), issued_at_ns=ledger.now_ns, **fields), by)


def _lease(ledger: Ledger, *names: str, principal: Principal = A, **fields: Any) -> Answer:
    holder = Holder(f"vm-{principal}")
    given = {"devices": tuple(map(device, names)), "ttl_ms": 600_000, "holder": holder, **fields}
    return _say(ledger, inputs.LeaseRequest, principal, **given)


def _release(ledger: Ledger, lease: Answer, principal: Principal = A) -> None:
    _say(ledger, inputs.ReleaseRequest, principal, lease=lease.lease, token=lease.token)


def _policy(ledger: Ledger, name: str, **fields: Any) -> None:
    _say(ledger, schedule_inputs.SetPolicyRequest, device=device(name), **fields)


def _cordoned(ledger: Ledger) -> None:
    _say(ledger, schedule_inputs.CordonRequest, device=device(ONE), reason="it smells")
    _lease(ledger, ONE)


def _tainted(ledger: Ledger) -> None:
    _say(ledger, schedule_inputs.TaintRequest, name="flaky", host="h1", reason="it flickers")
    _lease(ledger, ONE)


def _unclean(ledger: Ledger) -> None:
    _policy(ledger, ONE, clean=True)
    _release(ledger, _lease(ledger, ONE))
    _lease(ledger, ONE, principal=B)


def _kept(ledger: Ledger) -> None:
    _lease(ledger, ONE)
    assert _lease(ledger, ONE, OTHER, principal=B, wait_ms=600_000).kept
    _lease(ledger, OTHER, principal=OP)


def _shared(ledger: Ledger) -> None:
    _policy(ledger, ONE, share_max=2)
    _lease(ledger, ONE, mode="shared")
    _lease(ledger, ONE, principal=B)


def _not_to_be_shared(ledger: Ledger) -> None:
    _lease(ledger, ONE, mode="shared")


def _quota(ledger: Ledger) -> None:
    _say(ledger, schedule_inputs.SetQuotaRequest, tenant=A, devices_max=1)
    _lease(ledger, ONE, OTHER)


def _tolerating(ledger: Ledger) -> None:
    _lease(ledger, ONE, tolerates=("drain",))
    _drain(ledger, 0)


def _drained_with_notice(ledger: Ledger) -> None:
    _lease(ledger, ONE)
    _drain(ledger, 60_000)


def _drain(ledger: Ledger, notice_ms: int) -> None:
    fields: dict[str, Any] = {"name": "drain", "effect": "evict", "notice_ms": notice_ms}
    _say(ledger, schedule_inputs.TaintRequest, host="h1", reason="a new kernel", **fields)
    ledger.tick(15)


def _once_failed(ledger: Ledger) -> None:
    lease = _lease(ledger, ONE)
    ledger.observe(inputs.DeviceGone(DeviceKey(f"pci/0000:{ONE}")))
    _release(ledger, lease)
    ledger.tick(1)


def _queued(ledger: Ledger) -> Answer:
    _lease(ledger, ONE)
    return _lease(ledger, ONE, principal=B, wait_ms=60_000, priority=3)


def _waited(ledger: Ledger) -> None:
    _queued(ledger)
    ledger.tick(55)


def _withdrawn_by_another(ledger: Ledger) -> None:
    queued = _queued(ledger).queued
    _say(ledger, schedule_inputs.WithdrawRequest, A, queued=queued)


def _gang(ledger: Ledger) -> None:
    need = Need(select='device.vendor == "8086"', count=2)
    _lease(ledger, needs=(need,), host="h1")


def _many(ledger: Ledger) -> None:
    lease = _lease(ledger, ONE)
    ledger.now_ns += 500 * SECOND
    _say(ledger, schedule_inputs.RenewManyRequest, B, leases=((lease.lease, lease.token),))


def _many_expire(ledger: Ledger) -> None:
    lease = _lease(ledger, ONE)
    ledger.now_ns += 500 * SECOND
    _say(ledger, schedule_inputs.RenewManyRequest, A, leases=((lease.lease, lease.token),))
    ledger.tick(400)


def _transferred(ledger: Ledger) -> None:
    lease = _lease(ledger, ONE)
    token = {"lease": lease.lease, "token": lease.token}
    _say(ledger, schedule_inputs.TransferRequest, A, holder=Holder("vm-b"), principal=B, **token)
    _release(ledger, lease, B)


def _uncleaned(ledger: Ledger) -> None:
    _policy(ledger, ONE, clean=True)
    lease = _lease(ledger, ONE)
    token = {"lease": lease.lease, "token": lease.token}
    _say(ledger, schedule_inputs.TransferRequest, A, holder=Holder("vm-b"), principal=B, **token)


CASES: list[tuple[Callable[[Ledger], object], Callable[[], AbstractContextManager[Any]], str]] = [
    (_cordoned, faults.cordon_ignored, "is cordoned"),
    (_tainted, faults.taint_ignored, "does not tolerate the taint flaky"),
    (_unclean, faults.unclean_granted, "was not cleaned behind a"),
    (_kept, faults.kept_for_nobody, "it is kept for"),
    (_shared, faults.shared_given_to_one, "shares it"),
    (_not_to_be_shared, faults.everything_shared, "may be by 1"),
    (_quota, faults.quota_ignored, "a has 2 of all classes, and may have 1"),
    (_tolerating, faults.the_tolerating_are_evicted, "tolerates the taint"),
    (_drained_with_notice, faults.no_notice, "that is due"),
    (_once_failed, faults.one_failure_is_too_many, "for 1 failures"),
    (_queued, faults.last_comes_first, "in another place"),
    (_waited, faults.gives_up_early, "before its time"),
    (_withdrawn_by_another, faults.others_may_withdraw, "a withdraws what b waits for"),
    (_gang, faults.half_a_gang, "1 devices are granted for need 1, which wants 2"),
    (_many, faults.all_of_many_renewed, "or is another's"),
    (_many_expire, faults.kept_for_too_short_a_time, "before its time"),
    (_transferred, faults.token_survives_a_transfer, "is acted on with token"),
    (_uncleaned, faults.uncleaned_handed_on, "without having been cleaned"),
]


def _log(what: Callable[[Ledger], object], core: AbstractContextManager[Any]) -> list[bytes]:
    with core:
        ledger = ledger_with_hosts()
        ledger.note(inputs.DeciderStarts("alloc", "start"))
        ledger.now_ns += 31 * SECOND
        what(ledger)
    return ledger.bodies


@pytest.mark.parametrize(("what", "fault", "says"), CASES, ids=lambda each: getattr(each, "__name__", "").strip("_"))
def test_breaches_are_found(
    what: Callable[[Ledger], object], fault: Callable[[], AbstractContextManager[Any]], says: str
) -> None:
    """By the rules nothing is wrong with it; with the fault, the audit names the place and what is wrong there."""
    for bodies, is_right in ((_log(what, nullcontext()), True), (_log(what, fault()), False)):
        audit = Audit()
        records = [codec.decode_record(body, sequence) for sequence, body in enumerate(bodies, 1)]
        if is_right:
            for sequence, record in enumerate(records, 1):
                audit.step(sequence, record)
            continue
        with pytest.raises(CorruptLedgerError, match=f"at position [0-9]+, .*{says}"):
            for sequence, record in enumerate(records, 1):
                audit.step(sequence, record)


def test_what_is_only_looked_at_counts_against_no_quota() -> None:
    """A quota set while its tenant also looks on at a device that it has: the device counts once."""

    def looked_at(ledger: Ledger) -> None:
        _lease(ledger, ONE)
        _lease(ledger, ONE, mode="admin")
        _say(ledger, schedule_inputs.SetQuotaRequest, tenant=A, devices_max=2)
        assert _lease(ledger, OTHER).outcome == "granted"

    audit = Audit()
    for sequence, body in enumerate(_log(looked_at, nullcontext()), 1):
        audit.step(sequence, codec.decode_record(body, sequence))
