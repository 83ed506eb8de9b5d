"""Quotas: never exceeded, counted incrementally, and always what a count of all devices would say."""

import random
from collections import Counter

import pytest

from leasehold.events import limits, schedule_inputs
from leasehold.events.answers import Answer
from leasehold.events.event_types import LeaseGranted
from leasehold.events.identities import Holder, Principal
from leasehold.events.refusals import RefusalCode
from leasehold.events.scheduling import Need
from leasehold.projections import quotas
from leasehold.projections.rows import QuotaState
from leasehold.projections.state import State
from tests.projections.ledger import Ledger, device, ledger_with_hosts, refusal_of
from tests.scheduling.test_classes import remove_class, set_class
from tests.scheduling.words import code, holds_after_restart, policy, say

VFS = "device.pci.vf"
MINE, ALSO_MINE, OTHER = Principal("s1@lab"), Principal("s2@lab"), Principal("s1@other")
LAB = Principal("lab")


def set_quota(ledger: Ledger, devices_max: int, name: str = "", tenant: Principal = LAB) -> Answer:
    """An operator says how many devices a tenant may have."""
    return say(ledger, schedule_inputs.SetQuotaRequest, tenant=tenant, devices_max=devices_max, device_class=name)


def used(ledger: Ledger, name: str = "", tenant: Principal = LAB) -> int:
    """How much of it is used."""
    return ledger.state.quotas[tenant, name].devices


def test_a_quota_is_never_exceeded() -> None:
    """What would be more than a tenant may have is refused with how many it has, whoever of the tenant asks."""
    ledger = ledger_with_hosts()
    set_quota(ledger, 2)
    first = ledger.granted("01:00.0", principal=MINE)
    ledger.granted("0a:00.0", principal=ALSO_MINE)
    refusal = refusal_of(ledger.lease("2-2", principal=MINE))
    assert refusal.code == RefusalCode.QUOTA_EXCEEDED
    assert "may have 2 devices at a time; it has 2, and this needs 1" in refusal.message
    ledger.granted("2-2", principal=OTHER)
    ledger.release(first, MINE)
    assert used(ledger) == 1
    ledger.granted("01:00.0", principal=MINE)


def test_a_device_counts_until_it_is_free() -> None:
    """A lease that has ended counts for as long as its device is not free."""
    ledger = ledger_with_hosts()
    set_quota(ledger, 1)
    lease = ledger.granted("0a:00.0", principal=MINE)
    ledger.change("0a:00.0", in_use_by=("domain web",))
    ledger.release(lease, MINE)
    assert used(ledger) == 1
    assert code(ledger.lease("01:00.0", principal=MINE)) == RefusalCode.QUOTA_EXCEEDED
    ledger.change("0a:00.0", in_use_by=())
    ledger.tick()
    assert used(ledger) == 0
    ledger.granted("01:00.0", principal=MINE)


def test_quotas_of_classes_count_what_is_of_the_class() -> None:
    """Each quota counts its own class; a need takes what the quotas leave."""
    ledger = ledger_with_hosts()
    set_class(ledger, "vf", VFS)
    set_quota(ledger, 1, "vf")
    set_quota(ledger, 3)
    ledger.granted("03:10.0", principal=MINE)
    assert (used(ledger, "vf"), used(ledger)) == (1, 1)
    refusal = refusal_of(ledger.lease(needs=(Need(device_class="vf"),), principal=MINE))
    assert refusal.code == RefusalCode.QUOTA_EXCEEDED
    assert "of class vf" in refusal.message
    ledger.granted("01:00.0", "0a:00.0", principal=MINE)
    assert (used(ledger, "vf"), used(ledger)) == (1, 3)


def test_a_class_that_changes_recounts_nothing() -> None:
    """What counted when it was granted counts until it is free, whatever the class is meanwhile."""
    ledger = ledger_with_hosts()
    set_class(ledger, "vf", VFS)
    set_quota(ledger, 5, "vf")
    lease = ledger.granted("03:10.0", "01:00.0", principal=MINE)
    set_class(ledger, "vf", "true")
    assert used(ledger, "vf") == 1
    ledger.release(lease, MINE)
    assert used(ledger, "vf") == 0


def test_a_new_quota_counts_what_there_is() -> None:
    """A quota that is set counts what its tenant has of that class already; lowered, it takes nothing away."""
    ledger = ledger_with_hosts()
    set_class(ledger, "vf", VFS)
    lease = ledger.granted("03:10.0", "03:10.1", "01:00.0", principal=MINE)
    ledger.granted("0a:00.0", principal=OTHER)
    set_quota(ledger, 1, "vf")
    set_quota(ledger, 2)
    assert (used(ledger, "vf"), used(ledger)) == (2, 3)
    assert code(ledger.lease("2-2", principal=MINE)) == RefusalCode.QUOTA_EXCEEDED
    ledger.release(lease, MINE)
    assert (used(ledger, "vf"), used(ledger)) == (0, 0)


def test_a_quota_taken_away_counts_no_more() -> None:
    """Set again, a quota counts only what it would count then, and never falls below nothing."""
    ledger = ledger_with_hosts()
    set_class(ledger, "vf", VFS)
    set_quota(ledger, 4, "vf")
    lease = ledger.granted("03:10.0", "01:00.0", principal=MINE)
    assert set_quota(ledger, -1, "vf").outcome == "set"
    assert not ledger.state.devices[device("03:10.0")].charged
    set_class(ledger, "vf", 'device.key == "pci/0000:01:00.0"')
    set_quota(ledger, 4, "vf")
    assert used(ledger, "vf") == 1
    assert ledger.state.devices[device("03:10.0")].charged == ()
    ledger.release(lease, MINE)
    assert used(ledger, "vf") == 0
    set_quota(ledger, -1, "vf")
    assert code(set_quota(ledger, -1, "vf")) == RefusalCode.QUOTA_UNKNOWN
    assert remove_class(ledger, "vf").outcome == "set"
    assert code(set_quota(ledger, 4, "vf")) == RefusalCode.CLASS_UNKNOWN


def test_shared_devices_count_and_watched_ones_do_not() -> None:
    """Each lease that shares a device counts as long as it lives; who only looks on counts for nothing."""
    ledger = ledger_with_hosts()
    policy(ledger, device("0a:00.0"), share_max=4)
    set_quota(ledger, 2)
    ledger.granted("0a:00.0", principal=MINE, mode="admin")
    assert used(ledger) == 0
    shared = [ledger.granted("0a:00.0", principal=MINE, mode="shared", holder=Holder(f"vm{each}")) for each in "12"]
    assert used(ledger) == 2
    assert code(ledger.lease("0a:00.0", principal=MINE, mode="shared")) == RefusalCode.QUOTA_EXCEEDED
    ledger.release(shared[0], MINE)
    assert used(ledger) == 1
    set_class(ledger, "all", "true")
    set_quota(ledger, 9, "all")
    assert used(ledger, "all") == 1
    ledger.release(shared[1], MINE)
    assert (used(ledger), used(ledger, "all")) == (0, 0)


@pytest.mark.parametrize("how", ["released", "raised", "taken away"])
def test_who_waits_for_a_quota_is_served(how: str) -> None:
    """Who waits since its tenant has too much gets it as soon as the quota leaves room."""
    ledger = ledger_with_hosts()
    set_quota(ledger, 1)
    lease = ledger.granted("01:00.0", principal=MINE)
    waits = ledger.lease("0a:00.0", principal=MINE, wait_ms=60_000)
    assert waits.outcome == "queued", waits
    ledger.tick()
    assert not ledger.state.devices[device("0a:00.0")].lease
    if how == "released":
        ledger.release(lease, MINE)
    else:
        set_quota(ledger, 2 if how == "raised" else -1)
    ledger.tick()
    assert ledger.state.devices[device("0a:00.0")].lease


def test_quotas_are_bounded() -> None:
    """One more than a tenant may have, or than there may be in all, is refused; known ones may still be changed."""
    ledger = ledger_with_hosts()
    for number in range(limits.QUOTAS_PER_TENANT_MAX):
        ledger.state.put_quota(LAB, f"c{number:02}", QuotaState(devices_max=1, position=1))
    assert code(set_quota(ledger, 1)) == RefusalCode.QUOTAS_TOO_MANY
    assert set_quota(ledger, 7, "c07").outcome == "set"
    for number in range(limits.QUOTAS_MAX - limits.QUOTAS_PER_TENANT_MAX):
        ledger.state.put_quota(Principal(f"t{number}"), "", QuotaState(devices_max=1, position=1))
    assert code(set_quota(ledger, 1, tenant=OTHER)) == RefusalCode.QUOTAS_TOO_MANY


def counted(state: State) -> dict[tuple[Principal, str], int]:
    """What a count of all devices and leases says of each quota."""
    found: Counter[tuple[Principal, str]] = Counter()
    for row in state.devices.values():
        for name in row.charged:
            found[state.leases[row.lease].tenant, name] += 1
    for lease in state.leases.values():
        if lease.mode == "shared" and not lease.ended:
            for each in lease.charges:
                found.update((lease.tenant, name) for name in each)
    return {key: found[key] for key in state.quotas}


def test_counts_are_always_those_of_a_recount() -> None:
    """Whatever is leased, shared, released, expired and set, each quota is what counting anew says, and no grant goes
    over it; a snapshot brings back the same.
    """
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    ledger = ledger_with_hosts()
    names = ["01:00.0", "03:10.0", "03:10.1", "0a:00.0", "2-1.1", "2-1.2", "2-2", "05:00.0"]
    policy(ledger, device("0a:00.0"), share_max=3)
    set_class(ledger, "vf", VFS)
    set_class(ledger, "usb", 'device.kind == "usb_device"')
    leases: list[tuple[int, Principal]] = []
    outcomes: Counter[str] = Counter()
    for number in range(400):
        who = chance.choice([MINE, ALSO_MINE, OTHER])
        match chance.randrange(6):
            case 0 | 1 | 2:
                mode = chance.choice(["", "", "shared", "admin"])
                some = chance.sample(names, chance.randint(1, 3)) if mode != "shared" else ["0a:00.0"]
                answer = ledger.lease(
                    *some, principal=who, mode=mode, holder=Holder(f"vm{number}"), ttl_ms=chance.choice([5_000, 90_000])
                )
                outcomes[answer.refusal.code if answer.refusal else answer.outcome] += 1
                leases += [(answer.lease, who)] if answer.lease else []
            case 3:
                if leases:
                    ledger.release(*leases.pop(chance.randrange(len(leases))))
            case 4:
                set_quota(ledger, chance.choice([-1, 0, 1, 2, 3]), chance.choice(["", "vf", "usb"]))
            case _:
                ledger.tick(chance.choice([1, 10]))
        state = ledger.state
        assert {key: row.devices for key, row in state.quotas.items()} == counted(state), number
        holding = {lease for lease, row in state.leases.items() if row.has_devices}
        assert {lease for some in state.indexes.leases_of.values() for lease in some} == holding
        for event in ledger.events:
            if isinstance(event, LeaseGranted):
                charged = {name for names in event.charges or () for name in names}
                assert all(state.quotas[event.tenant, name].left >= 0 for name in charged)
    assert outcomes[RefusalCode.QUOTA_EXCEEDED] > 5, outcomes
    assert outcomes["granted"] > 20, outcomes
    holds_after_restart(ledger)


def test_who_has_no_quota_pays_nothing_for_those_of_others() -> None:
    """Of a tenant without a quota nothing is counted, and its grants say nothing of quotas."""
    ledger = ledger_with_hosts()
    set_quota(ledger, 1)
    assert quotas.charges(ledger.state, Principal("other"), (device("01:00.0"),)) == ()
    ledger.granted("01:00.0", principal=OTHER)
    assert b"charges" not in ledger.bodies[-1]
