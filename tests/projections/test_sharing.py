"""What cannot be owned apart any more is told: nobody loses a lease by it, and nothing more is granted of it."""

import msgspec
import pytest

from leasehold.events import codec, event_types, limits
from leasehold.events.event_types import SharedPair, SharingFound
from leasehold.events.inputs import DeviceGone, DeviceSeen
from leasehold.projections.history import index_rows
from leasehold.projections.replay import Replay
from leasehold.projections.telling import tell
from leasehold.projections.views import device_view, lease_view
from tests.projections.ledger import H1, A, B, Ledger, device, ledger_with_hosts, pci, refusal_of


def told(ledger: Ledger) -> SharingFound | None:
    """What the last record told of it; it then stands behind all else."""
    found = [event for event in ledger.events if isinstance(event, SharingFound)]
    assert len(found) <= 1
    assert not found or ledger.events[-1] is found[0]
    return found[0] if found else None


def regroup(ledger: Ledger, text: str, group: int) -> SharingFound | None:
    """The watcher sees the device in another IOMMU group."""
    ledger.change(text, iommu_group=group)
    return told(ledger)


def test_two_holders_in_one_group() -> None:
    """A group drawn anew around devices of two holders is told once, with both leases, in history and in views."""
    ledger = ledger_with_hosts()
    mine, theirs = ledger.granted("0a:00.0"), ledger.granted("02:00.0", principal=B)
    found = regroup(ledger, "0a:00.0", 2)
    pair = SharedPair(device("0a:00.0"), mine, device("02:00.0"), theirs, "iommu_group")
    assert found == SharingFound(H1, (pair,), 1)
    rows = {(kind, name) for kind, name, _ in index_rows(ledger.state, 7, found)}
    assert rows >= {("device", device("0a:00.0")), ("device", device("02:00.0")), ("lease", f"L{mine}"), ("host", H1)}
    assert f"L{theirs}" in tell(found, 7, ledger.state)
    for text, other in (("0a:00.0", "02:00.0"), ("02:00.0", "0a:00.0")):
        view = device_view(ledger.state, device(text))
        assert view.state == "leased"
        assert f"cannot be owned apart from {device(other)}" in view.reason
    assert device("02:00.0") in lease_view(ledger.state, mine, asker=A).reason
    for fields in ({"driver": "vfio-pci"}, {"parent": "pci/0000:02:02.0"}):
        ledger.change("0a:00.0", **fields)
        assert told(ledger) is None, "it was told already"


def test_nothing_is_taken_and_nothing_more_is_given() -> None:
    """Both leases live on and can be renewed; a free mate is refused to both until one of them has ended."""
    ledger = ledger_with_hosts()
    mine, theirs = ledger.granted("0a:00.0"), ledger.granted("02:00.0", principal=B)
    assert regroup(ledger, "0a:00.0", 2)
    assert ledger.renew(mine).outcome == ledger.renew(theirs, B).outcome == "renewed"
    assert refusal_of(ledger.lease("02:00.1")).blockers[0].rule == "iommu_group"
    assert refusal_of(ledger.lease("02:00.1", principal=B)).blockers[0].rule == "iommu_group"
    ledger.release(mine)
    assert "owned apart" not in device_view(ledger.state, device("02:00.0")).reason
    assert ledger.lease("02:00.1", principal=B).outcome == "granted"


def test_one_holder_may_have_the_group() -> None:
    """Devices of one holder may come to be in one group; so may devices that nobody holds."""
    ledger = ledger_with_hosts()
    ledger.granted("0a:00.0")
    ledger.granted("02:00.0")
    assert regroup(ledger, "0a:00.0", 2) is None
    assert regroup(ledger, "01:00.0", 2) is None
    assert regroup(ledger, "0a:00.0", 13) is None


@pytest.mark.parametrize(
    ("held", "changed", "fields", "rule"),
    [
        (("0a:00.0", "03:00.0"), "0a:00.0", {"physical_function": "pci/0000:03:00.0"}, "physical_function"),
        (("03:10.0", "0a:00.0"), "03:00.0", {"iommu_group": 13}, "iommu_group"),
        (("2-2", "0a:00.0"), "04:00.0", {"iommu_group": 13}, "iommu_group"),
    ],
)
def test_what_is_carried_counts(held: tuple[str, str], changed: str, fields: dict[str, object], rule: str) -> None:
    """A tie is found whether a leased device has moved, or the one that carries it and that nobody holds."""
    ledger = ledger_with_hosts()
    ledger.granted(held[0])
    ledger.granted(held[1], principal=B)
    ledger.change(changed, **fields)
    found = told(ledger)
    assert found is not None
    assert {found.pairs[0].device, found.pairs[0].other} == {device(text) for text in held}
    assert found.pairs[0].rule == rule


def test_groups_that_change_places() -> None:
    """All of one message is looked at together: two devices that swap their groups share nothing."""
    ledger = ledger_with_hosts()
    ledger.granted("0a:00.0")
    ledger.granted("01:00.0", principal=B)
    rows = [ledger.state.devices[device(text)].description for text in ("0a:00.0", "01:00.0")]
    ledger.see(
        msgspec.structs.replace(rows[0], iommu_group=rows[1].iommu_group),
        msgspec.structs.replace(rows[1], iommu_group=rows[0].iommu_group),
    )
    assert len(ledger.events) == 3
    assert told(ledger) is None


def test_back_in_another_group() -> None:
    """A device that comes back into another's group is told of as well, and the whole log decides alike again."""
    ledger = ledger_with_hosts()
    ledger.granted("0a:00.0")
    ledger.granted("02:00.0", principal=B)
    ledger.observe(DeviceGone(device("0a:00.0").removeprefix("h1/")))  # type: ignore[arg-type]
    ledger.see(pci("0a:00.0", iommu_group=2))
    assert told(ledger) is not None
    replay = Replay()
    for sequence, body in enumerate(ledger.bodies, 1):
        assert replay.step(sequence, body) is None
    assert replay.folded_only == 0


def test_many_pairs_fit_into_a_record() -> None:
    """The largest message, all of whose devices come into one group, makes one record: some are named, all counted."""
    ledger = Ledger()
    count = limits.OBSERVATIONS_PER_MESSAGE_MAX
    texts = [f"{bus:02x}:{slot:02x}.0" for bus in range(1, 10) for slot in range(32)][:count]
    ledger.start_host(H1, *(pci(text, iommu_group=number) for number, text in enumerate(texts[:-1])))
    ledger.see(pci(texts[-1], iommu_group=count))
    for principal, some in ((A, texts[:4]), (B, texts[4:8])):
        ledger.granted(*some, principal=principal)
    ledger.observe(*(DeviceSeen(pci(text, iommu_group=7)) for text in texts))
    found = told(ledger)
    assert found is not None
    assert found.count == 16
    assert len(ledger.events) <= limits.EVENTS_PER_RECORD_MAX
    assert len(found.pairs) == limits.SHARED_PAIRS_TOLD_MAX
    assert len(codec.encode(found)) < 64 * 1024
    assert isinstance(ledger.events[0], event_types.ObservationsAccepted)
