"""What is told of classes, quotas and the queue is what the state says, page by page, at any place of any log."""

import random

import pytest

from leasehold.events import limits, schedule_inputs
from leasehold.events.errors import InvalidInputError
from leasehold.events.identities import Principal
from leasehold.events.scheduling import Need
from leasehold.projections import quotas, schedulelists, views
from leasehold.projections.scheduletelling import wanted_text
from leasehold.projections.state import State
from tests.past import logs, scheduled
from tests.projections.ledger import A, B, Ledger, device, ledger_with_hosts
from tests.scheduling.words import say

PLACES = 25


def _set_class(ledger: Ledger, name: str, select: str) -> None:
    say(ledger, schedule_inputs.SetClassRequest, name=name, select=select)


def test_how_a_class_stands() -> None:
    """Each device of a class is counted once: free, leased, kept, or out; and so many wait for it as name it."""
    ledger = ledger_with_hosts()
    _set_class(ledger, "nic", 'device.vendor == "8086" && device.kind == "pci"')
    (before,), _ = schedulelists.class_views(ledger.state, limit=10)
    ledger.granted("01:00.0")
    ledger.lease("01:00.0", "0a:00.0", principal=B, wait_ms=60_000)
    needs = (Need(device_class="nic", count=60),)
    ledger.ask(ledger.request(needs=needs, wait_ms=60_000), B)
    (view,), more = schedulelists.class_views(ledger.state, name="nic", limit=10)
    assert not more
    assert (view.leased, view.kept, view.queued) == (1, 1, 1)
    assert view.free == before.free - 2
    assert view.devices == before.devices == view.free + view.leased + view.kept + view.out
    assert view.out == before.out


def _counted(state: State, name: str) -> dict[str, int]:
    """Brute force: every device of the ledger, one by one."""
    counts = dict.fromkeys(("free", "leased", "kept", "out"), 0)
    for each, row in state.devices.items():
        if state.candidates.cell_of(each) is None or not quotas.is_of_class(state, each, name):
            continue
        word, _ = views.device_word(state, each)
        if (row.lease and not row.missing) or row.sharers:
            word = "leased"
        counts[word if word in counts else "out"] += 1
    return counts


def test_lists_are_those_of_the_state() -> None:
    """Classes count what is counted one by one; quotas and the queue stand whole, and in their order, in pages of any
    size.
    """
    for seed in logs.seeds(2):
        rng = random.Random(seed)
        events = logs.events_of(scheduled.random_log(seed).bodies)
        for _, state in logs.folded(events, [rng.choice(events).position for _ in range(PLACES)]):
            for view in schedulelists.class_views(state, limit=1_000)[0]:
                assert {name: getattr(view, name) for name in ("free", "leased", "kept", "out")} == _counted(
                    state, view.name
                )
                named = [row for row in state.queue.values() if f"class:{view.name}" in row.buckets]
                assert view.queued == len(named)
                free = _free(state, view.name, rng)
                assert len(free) == len(set(free)) == view.free
            size = rng.choice((1, 2, 1_000))
            _check_quotas(state, size)
            _check_queue(state, size)


def _free(state: State, name: str, rng: random.Random) -> list[str]:
    found: list[str] = []
    more = True
    while more:
        after = found[-1] if found else ""
        page, more = schedulelists.free_devices(state, name, after=after, limit=rng.choice((1, 3, 1_000)))
        found += page
    return found


def _check_quotas(state: State, size: int) -> None:
    found: list[tuple[str, str, int, int]] = []
    more = True
    while more:
        after = f"{found[-1][0]}/{found[-1][1]}" if found else ""
        page, more = schedulelists.quota_views(state, after=after, limit=size)
        found += [(row.tenant, row.device_class, row.devices_max, row.devices) for row in page]
    assert found == [(*key, row.devices_max, row.devices) for key, row in sorted(state.quotas.items())]
    own, _ = schedulelists.quota_views(state, tenant=A, limit=1_000)
    assert [(row.tenant, row.device_class) for row in own] == [key for key in sorted(state.quotas) if key[0] == A]


def _check_queue(state: State, size: int) -> None:
    order = sorted(state.queue, key=lambda queued: (state.queue[queued].rank_ns, queued))
    found: list[str] = []
    more = True
    while more:
        page, more = schedulelists.queued_views(state, after=found[-1] if found else "", limit=size)
        for row in page:
            known = state.queue[int(row.queued[1:])]
            assert (row.tenant, row.kept, row.needs) == (known.tenant, known.keeps, wanted_text(known.asked))
            assert row.place == len(found) + page.index(row) + 1 > row.ahead
        found += [row.queued for row in page]
    assert found == [f"Q{queued}" for queued in order]
    own, _ = schedulelists.queued_views(state, tenant=Principal(A), limit=1_000)
    assert [row.queued for row in own] == [f"Q{queued}" for queued in order if state.queue[queued].tenant == A]


def test_a_place_that_is_gone_is_no_place_to_go_on_from() -> None:
    """Who lists the queue and names a place at which nobody waits any more is told so."""
    ledger = ledger_with_hosts()
    ledger.granted("01:00.0")
    answer = ledger.lease("01:00.0", principal=B, wait_ms=60_000)
    with pytest.raises(InvalidInputError, match="begin anew"):
        schedulelists.queued_views(ledger.state, after=f"Q{answer.queued + 1}", limit=10)


def test_a_class_that_is_too_large_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more devices are looked at than the bound says, and it is said that there are more."""
    ledger = ledger_with_hosts()
    _set_class(ledger, "nic", 'device.kind == "pci"')
    _set_class(ledger, "usb", 'device.kind == "usb_device"')
    monkeypatch.setattr(limits, "CLASS_DEVICES_LOOKED_MAX", 3)
    found, more = schedulelists.class_views(ledger.state, limit=10)
    assert [(view.name, view.devices, view.is_cut_off) for view in found] == [("nic", 3, True)]
    assert more
    free, more = schedulelists.free_devices(ledger.state, "nic", after="", limit=10)
    assert len(free) <= 3
    assert more
    assert device("01:00.0") in free
