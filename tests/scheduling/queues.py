"""Requests that wait, of the ledger in memory; and what must hold of those who do, at any time."""

from collections.abc import Iterable
from typing import Any

from leasehold.events.answers import Answer
from leasehold.events.event_types import Event
from leasehold.events.identities import Holder, Principal
from leasehold.events.scheduling import Need
from leasehold.projections import evolve
from leasehold.projections.indexes import EVERYBODY
from leasehold.projections.snapshots import decode_state, encode_state
from leasehold.projections.state import State
from tests.projections.ledger import A, Ledger, device, ledger_with_hosts, pci

MODEL_PRODUCT = "2684"
MODEL = f'device.vendor == "10de" && device.product == "{MODEL_PRODUCT}"'
ROUNDS_MAX = 500


def waits(ledger: Ledger, *devices: str, who: str = "w", principal: Principal = A, **fields: Any) -> Answer:
    """Somebody asks for devices by their short names and waits: how it stands."""
    names = tuple(device(text) for text in devices)
    given = {"wait_ms": 600_000, "holder": Holder(who), **fields}
    return ledger.ask(ledger.request(*names, **given), principal)


def queued(ledger: Ledger, *devices: str, **fields: Any) -> int:
    """Like `waits`, where it must wait: its place."""
    answer = waits(ledger, *devices, **fields)
    assert answer.outcome == "queued", answer
    assert answer.queued in ledger.state.queue
    return answer.queued


def gpus(count: int, **fields: Any) -> dict[str, Any]:
    """The fields of a request for so many GPUs of the one model that there is."""
    return {"needs": (Need(select=MODEL, count=count, **fields),)}


def gpu(number: int, **fields: Any) -> Any:
    """The description of such a GPU."""
    given = {"vendor_id": "10de", "product_id": MODEL_PRODUCT, "pci_class": 0x030200, "iommu_group": 100 + number}
    return pci(f"{0x20 + number:02x}:00.0", **{**given, **fields})


def ledger_with_gpus(count: int) -> Ledger:
    """The usual hosts, and so many GPUs on the first."""
    ledger = ledger_with_hosts()
    ledger.see(*(gpu(number) for number in range(count)))
    return ledger


def gpu_names(numbers: Iterable[int]) -> tuple[str, ...]:
    """The short names of GPUs."""
    return tuple(f"{0x20 + number:02x}:00.0" for number in numbers)


def settle(ledger: Ledger) -> list[Event]:
    """Decide until nothing is left to be decided now: all that came of it. Each decision must come to something."""
    events: list[Event] = []
    for _ in range(ROUNDS_MAX):
        if not ledger.sequencer.has_work(ledger.now_ns):
            return events
        ledger.commit()
        assert ledger.events, "there was work, and nothing came of it: this would go on for ever"
        events += ledger.events
    raise AssertionError(f"there is still work after {ROUNDS_MAX} records")


def told(ledger: Ledger, kind: type[Any]) -> list[Any]:
    """The events of a kind in the last record."""
    return [event for event in ledger.events if isinstance(event, kind)]


def holder_of(ledger: Ledger, text: str) -> str:
    """Who has a device; empty: nobody."""
    row = ledger.state.devices[device(text)]
    return ledger.state.leases[row.lease].holder if row.lease else ""


def kept_for(ledger: Ledger, text: str) -> int:
    """For which waiting request a device is kept; 0: for none."""
    return ledger.state.indexes.kept.get(device(text), 0)


def check_queue(state: State) -> None:
    """What is derived from those who wait is what their rows say, and what is kept is kept once."""
    kept: dict[str, int] = {}
    under: dict[str, list[tuple[int, int]]] = {}
    of: dict[str, list[int]] = {}
    for place, row in sorted(state.queue.items()):
        for each in row.keeps:
            assert kept.setdefault(each, place) == place, f"{each} is kept for two"
        for bucket in (*row.buckets, EVERYBODY):
            under.setdefault(bucket, []).append((row.rank_ns, place))
        of.setdefault(row.principal, []).append(place)
        answer = state.answers[row.request]
        assert (answer.queued, answer.refusal) == (place, None)
    assert dict(state.indexes.kept) == kept
    assert dict(state.indexes.queued) == {bucket: sorted(places) for bucket, places in under.items()}
    assert dict(state.indexes.queued_of) == of
    assert list(state.indexes.stirs) == sorted(state.stirred)
    assert not state.news


def folds_alike(ledger: Ledger) -> None:
    """The log from its beginning, from a snapshot at each record, and through a journal that is rolled back first,
    comes to the same bytes and the same indexes.
    """
    plain, noted = State(), State()
    for sequence, body in enumerate(ledger.bodies, 1):
        noted.journal.begin()
        evolve.fold(noted, sequence, body)
        noted.roll_back()
        check_queue(noted)
        assert encode_state(noted) == encode_state(plain)
        noted.journal.begin()
        evolve.fold(noted, sequence, body)
        noted.journal.commit()
        plain = decode_state(encode_state(plain)) or State()
        check_queue(plain)
        evolve.fold(plain, sequence, body)
        check_queue(plain)
        assert encode_state(noted) == encode_state(plain)
    assert encode_state(plain) == encode_state(ledger.state)
    check_queue(ledger.state)
