"""Why a request was decided as it was, where devices are handed over: who revoked, what failed, what freed them."""

from pathlib import Path

from leasehold.events import inputs
from leasehold.events.identities import Holder, split_device_id
from leasehold.events.questions import Blame, Reading
from tests.past.logs import archived
from tests.projections.ledger import H1, B, Ledger, device, ledger_with_hosts

CARD = device("01:00.0")
KEY = split_device_id(CARD)[1]


def links(page: Reading) -> list[tuple[int, str, str]]:
    """Depth, link and type of each cause."""
    return [(cause.depth, cause.because, cause.type) for cause in page.causes]


def managed() -> Ledger:
    """A ledger whose first host has a binder."""
    ledger = ledger_with_hosts()
    ledger.start_binder(H1)
    return ledger


async def test_a_failed_lease_names_the_device_and_the_reason(tmp_path: Path) -> None:
    """Beside the grant stands why it failed, and of which device."""
    ledger = managed()
    granted = ledger.lease("01:00.0")
    ledger.bind(inputs.NotPrepared(KEY, granted.lease, "vfio-pci did not take it"))
    async with archived(tmp_path, ledger.bodies) as past:
        page = await past.ask(Blame(request_id=granted.request_id))
    assert links(page)[-2:] == [(0, "ended by", "prepare_failed.v1"), (1, "granted by", "lease_granted.v2")]
    assert f"{CARD} could not be prepared: vfio-pci did not take it" in page.causes[-2].text


async def test_a_revoked_lease_names_who_took_it_away(tmp_path: Path) -> None:
    """And the grant behind it leads over the device's being given back to the revocation."""
    ledger = managed()
    first = ledger.lease("01:00.0")
    ledger.bind(inputs.Prepared(KEY, first.lease, "vfio-pci", "igb", "flr"))
    request = inputs.RevokeRequest(
        request_id=ledger.new_id(), issued_at_ns=ledger.now_ns, lease=first.lease, reason="the host is to be emptied"
    )
    assert ledger.ask(request, B).outcome == "revoked"
    ledger.bind(inputs.GivenBack(KEY, first.lease, "igb"))
    ledger.tick(1)
    second = ledger.lease("01:00.0", principal=B)
    assert second.outcome == "granted"
    async with archived(tmp_path, ledger.bodies) as past:
        revoked = await past.ask(Blame(request_id=first.request_id))
        granted = await past.ask(Blame(request_id=second.request_id, principal="b"))
    assert revoked.causes[-2].type == "lease_revoked.v1"
    assert "the host is to be emptied (asked by b," in revoked.causes[-2].text
    assert links(granted) == [
        (0, "", "lease_granted.v2"), (1, "asked by", "lease.v1"), (1, "free by", "device_freed.v1"),
        (2, "ended by", "lease_revoked.v1"), (3, "granted by", "lease_granted.v2"),
        (2, "given back by", "device_given_back.v1"), (3, "ended by", "lease_revoked.v1"),
    ]  # fmt: skip


async def test_what_is_in_quarantine_names_what_the_binder_said(tmp_path: Path) -> None:
    """A refused request leads to the word by which the device was put aside."""
    ledger = managed()
    ledger.bind(inputs.Stuck(KEY, 0, "its reset hangs", "switch the host off and on"))
    refused = ledger.lease("01:00.0")
    assert refused.outcome == "refused"
    async with archived(tmp_path, ledger.bodies) as past:
        page = await past.ask(Blame(request_id=refused.request_id))
    assert ("in quarantine since", "device_quarantined.v1") in [link[1:] for link in links(page)]
    assert "its reset hangs (what helps: switch the host off and on)" in page.causes[-1].text


async def test_what_a_dead_host_had_names_who_said_that_it_is_dead(tmp_path: Path) -> None:
    """A grant of what was freed so leads to the word of the operator."""
    ledger = managed()
    first = ledger.lease("01:00.0")
    for agent in ("watcher", "binder"):
        ledger.note(inputs.HostHeard(H1, agent, 1, alive=False))
    ledger.release(first.lease)
    request = inputs.DeclareDeadRequest(
        request_id=ledger.new_id(), issued_at_ns=ledger.now_ns, host=H1, reason="I unplugged it"
    )
    assert ledger.ask(request, B).outcome == "declared_dead"
    ledger.tick(1)
    ledger.start_host(H1, *(row.description for row in ledger.state.devices.values() if row.host == H1), run=2)
    ledger.start_binder(H1, run=2)
    second = ledger.lease("01:00.0")
    assert second.outcome == "granted", second
    async with archived(tmp_path, ledger.bodies) as past:
        page = await past.ask(Blame(request_id=second.request_id))
    assert (2, "declared dead by", "host_declared_dead.v1") in links(page)


async def test_wishes_are_told_in_words(tmp_path: Path) -> None:
    """What was asked of handing over stands in the chain."""
    ledger = managed()
    leased = ledger.lease("01:00.0", driver="pci-stub")
    operate = inputs.OperateDeviceRequest(
        request_id=ledger.new_id(), issued_at_ns=ledger.now_ns, device=device("0a:00.0"), operation="detach"
    )
    ordered = ledger.ask(operate, B)
    assert ordered.outcome == "ordered", ordered
    prepare = inputs.PrepareRequest(
        request_id=ledger.new_id(), issued_at_ns=ledger.now_ns, domain="web1", holder=Holder("vm"), ttl_ms=60_000,
        bus="usb",
    )  # fmt: skip
    refused = ledger.ask(prepare)
    async with archived(tmp_path, ledger.bodies) as past:
        pages = [await past.ask(Blame(request_id=answer.request_id)) for answer in (leased, ordered, refused)]
    texts = [page.causes[1].text for page in pages]
    assert texts[0] == f"a asked for {CARD}, for vm, for 1 min, to be bound to pci-stub"
    assert texts[1] == "b asked to detach h1/pci/0000:0a:00.0, within 1 min"
    assert texts[2] == "a asked for the USB devices of domain web1, for vm, for 1 min"
