"""What could be leased, by cell and bucket: whatever happens, it is what the rows say, and a look finds it at once."""

import random

import msgspec

from leasehold.events import inputs
from leasehold.events.identities import DeviceId, HostName, split_device_id
from leasehold.projections import buckets, candidates
from leasehold.projections.searching import Found, search
from leasehold.projections.snapshots import decode_state, encode_state
from leasehold.projections.state import State
from leasehold.projections.waiting import terms_of_waiting
from tests.projections.ledger import A, B, Ledger, ledger_with_hosts
from tests.scheduling import words
from tests.scheduling.worlds import HOSTS, NIC, ask, card, named, need, take, world

ETHERNET = 'device.pci.class == "0200"'
Lists = dict[str, tuple[dict[candidates.Cell, list[DeviceId]], dict[str, list[candidates.Cell]]]]


def lists_of(state: State) -> Lists:
    """All three, as they are now."""
    found = {name: getattr(state.candidates, name) for name in ("known", "free", "shareable")}
    return {
        name: (
            {cell: list(some) for cell, some in each.cells.items()},
            {word: list(some) for word, some in each.buckets.items()},
        )
        for name, each in found.items()
    }


def check(state: State) -> None:
    """They are made of the rows, and in the buckets of their devices."""
    free, known = state.candidates.free, state.candidates.known
    for device, row in state.devices.items():
        its = buckets.of_device(device, row)
        cell = state.candidates.cell_of(device)
        assert (cell is not None) == bool(its), device
        if cell is None:
            continue
        assert {*candidates.buckets_of(cell), f"device:{device}"} == set(its)
        assert known.has(cell, device)
        assert free.has(cell, device) == candidates.is_free(row), device
        for bucket in candidates.buckets_of(cell):
            assert cell in known.buckets[bucket]
            assert (cell in free.buckets.get(bucket, [])) == (cell in free.cells)
    for listing in (known, free, state.candidates.shareable):
        assert all(listing.cells.values())
        assert all(listing.buckets.values())
        assert all(members == sorted(set(members)) for members in listing.cells.values())
        assert all(members == sorted(set(members)) for members in listing.buckets.values())
    again = decode_state(encode_state(state))
    assert again is not None
    assert lists_of(again) == lists_of(state)


def happens(rng: random.Random, ledger: Ledger, device: DeviceId) -> None:
    """Something, to a device."""
    row = ledger.state.devices[device]
    host, key = split_device_id(device)
    match rng.randrange(9):
        case 0 | 1:
            ledger.ask(ledger.request(device), B)
        case 2 if row.lease and not row.ending:
            ledger.release(row.lease, principal=B)
        case 3:
            ledger.observe(inputs.DeviceGone(key=key), host=host)
        case 4:
            ledger.see(msgspec.structs.replace(row.description, vendor_id=rng.choice(("10de", "", "8086"))), host=host)
        case 5:
            ledger.see(msgspec.structs.replace(row.description, bridge=not row.description.bridge), host=host)
        case 6:
            (words.cordon if rng.random() < 0.5 else words.uncordon)(ledger, device=device)
        case 7:
            words.policy(ledger, device, share_max=rng.choice((1, 2)))
        case 8:
            ledger.ask(ledger.request(device, mode="shared"), B)
        case _:
            pass


def test_whatever_happens_they_are_what_the_rows_say() -> None:
    """Leases, shared ones, replugs, cordons, other descriptions: at every step, and in a snapshot of it."""
    for seed in range(12):
        print(f"seed {seed}")
        rng = random.Random(seed)
        ledger = ledger_with_hosts()
        for _ in range(40):
            happens(rng, ledger, rng.choice(sorted(ledger.state.devices)))
            check(ledger.state)


def test_what_is_undone_is_undone_in_the_lists() -> None:
    """As if it had never been."""
    for seed in range(12):
        print(f"seed {seed}")
        rng = random.Random(seed)
        ledger = ledger_with_hosts()
        for _ in range(10):
            happens(rng, ledger, rng.choice(sorted(ledger.state.devices)))
        state, before = ledger.state, lists_of(ledger.state)
        state.journal.begin()
        for device in rng.sample(sorted(state.devices), 12):
            row = state.devices[device]
            description = msgspec.structs.replace(row.description, product_id=rng.choice(("", "1", "2")))
            state.put_device(device, msgspec.structs.replace(row, description=description))
            state.put_device(device, msgspec.structs.replace(row, missing=not row.missing))
        state.roll_back()
        assert lists_of(state) == before
        check(state)


def test_a_search_looks_at_little_of_much() -> None:
    """Host and model narrow together; what is leased, missing or cordoned costs no step."""
    cards = tuple(card(f"{slot:02x}") for slot in (*range(0x20, 0x2A), *range(0x30, 0x38)))
    ledger = world({HostName(f"n{number:02}"): cards for number in range(20)})
    answer = ask(ledger, need(f'{ETHERNET} && device.host == "n19"'))
    assert answer.devices == (named("n19:30"),)
    assert answer.search is not None
    assert answer.search.steps <= 3
    take(ledger, *(f"n19:{slot}" for slot in (31, 32, 33)))
    words.cordon(ledger, device=named("n19:34"))
    ledger.observe(inputs.DeviceGone(key=split_device_id(named("n19:35"))[1]), host=HostName("n19"))
    answer = ask(ledger, need(ETHERNET), host="n19")
    assert answer.devices == (named("n19:36"),)
    assert answer.search is not None
    assert answer.search.needs[0].looked == 1


def test_what_is_kept_for_oneself_is_found_whoever_asks_how_it_stands() -> None:
    """Also by a search that is not told what is to be preferred; whoever comes behind does not find it."""
    ledger = world({HOSTS[0]: (card("30"), card("31"))})
    take(ledger, "h1:30")
    answer = ask(ledger, need(NIC, 2), wait_ms=600_000)
    assert answer.outcome == "queued", answer
    row = ledger.state.queue[answer.queued]
    one = msgspec.structs.replace(row.asked, needs=(need(NIC),))
    terms = terms_of_waiting(answer.queued, row)
    assert isinstance(search(ledger.state, one, terms, owner=(A, "job")), Found)
    behind = msgspec.structs.replace(terms, queued=0, rank_ns=terms.rank_ns + 1)
    assert not isinstance(search(ledger.state, one, behind, owner=(A, "job")), Found)
