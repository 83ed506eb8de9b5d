"""What the query service answers, on a real server."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from leasehold.events import inputs, questions
from leasehold.events.devices import DeviceDescription
from leasehold.events.identities import HostName
from leasehold.events.position import sequence_of
from leasehold.events.views import DeviceView, HistoryRow
from leasehold.projections.views import device_view, picture_of
from leasehold.services.query import past
from tests.integration.asking import DEVICE, NIC, Running, asking_at, nic
from tests.integration.growing import pci


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with asking_at(tmp_path) as running:
        yield running


# --- lists --------------------------------------------------------------------------------------------------------


async def test_devices_come_in_pages_and_whole(running: Running) -> None:
    """Pages of every size put together are all devices of the state, in order, each as the projection shows it."""
    grower = running.grower
    await grower.report("h0", pci(3))
    await grower.report("h10", pci(1), pci(2))
    expected = [device_view(grower.state, device) for device in sorted(grower.state.devices)]
    for limit in (1, 2, 5, 1_000):
        rows: list[DeviceView] = []
        more = True
        while more:
            reading = await running.ok(questions.ListDevices(limit=limit, after=rows[-1].device if rows else ""))
            assert 1 <= len(reading.devices) <= limit
            rows, more = rows + reading.devices, reading.more
        assert rows == expected
    of_host = await running.ok(questions.ListDevices(host="h1"))
    assert of_host.devices == [view for view in expected if view.host == "h1"]
    page = await running.ok(questions.ListDevices(host="h1", limit=2, after="h1/pci/0000:00:06.0"))
    assert [view.key for view in page.devices] == ["pci/0000:00:07.0", "pci/0000:00:08.0"]
    assert not page.more
    assert (await running.ask(questions.ListDevices(host="nowhere"))).outcome == "not_found"


async def test_leases_come_in_order_and_ended_ones_when_asked_for(running: Running) -> None:
    """Living ones by default, all with `ended`, of one holder, in pages; a new one shows at once."""
    grower = running.grower
    for slot in range(1, 5):
        await grower.turn(f"h1/pci/0000:00:0{slot}.0", holder=f"vm{slot}")
    kept = [await grower.ask("alice", grower.lease(f"h1/pci/0000:00:0{slot}.0", holder="vm1")) for slot in (1, 2)]
    names = [f"L{answer.lease}" for answer in kept]
    assert [view.lease for view in (await running.ok(questions.ListLeases())).leases] == names
    every = (await running.ok(questions.ListLeases(ended=True))).leases
    assert len(every) == 6
    assert [view.lease for view in every] == sorted((view.lease for view in every), key=lambda name: int(name[1:]))
    assert [view.state for view in every] == ["ended"] * 4 + ["living"] * 2
    of_holder = (await running.ok(questions.ListLeases(holder="vm1", ended=True))).leases
    assert [view.holder for view in of_holder] == ["vm1"] * 3
    first = await running.ok(questions.ListLeases(limit=1))
    assert first.more
    assert [view.lease for view in first.leases] == names[:1]
    rest = await running.ok(questions.ListLeases(limit=1, after=kept[0].lease))
    assert not rest.more
    assert [view.lease for view in rest.leases] == names[1:]


async def test_tokens_are_their_principals_own(running: Running) -> None:
    """In lists, `show` and `explain` a lease has its token for the principal that asked for it, and 0 for others."""
    grower = running.grower
    granted = await grower.ask("alice", grower.lease(DEVICE, holder="vm1"))
    name = f"L{granted.lease}"
    for question in (questions.ListLeases(), questions.Show(name=name), questions.Explain(name=name)):
        (mine,) = (await running.ok(question, "alice")).leases
        (other,) = (await running.ok(question, "bob")).leases
        assert (mine.token, other.token) == (granted.token, 0)


async def test_hosts_and_status(running: Running) -> None:
    """Hosts come in order and pages; the overview counts what there is."""
    grower = running.grower
    await grower.report("h0", pci(1))
    await grower.note(inputs.HostHeard(HostName("h0"), "watcher", 1, alive=False))
    await grower.ask("alice", grower.lease(DEVICE, holder="vm1"))
    first = await running.ok(questions.ListHosts(limit=1))
    assert ([view.host for view in first.hosts], first.more) == (["h0"], True)
    (rest,) = (await running.ok(questions.ListHosts(after="h0"))).hosts
    assert (rest.host, rest.mode, rest.devices, rest.stale) == ("h1", "watched", 9, "")
    status = (await running.ok(questions.Status())).status
    assert status is not None
    head = grower.state.head
    assert (status.sequence, status.chain, status.ledger_id) == (head.sequence, head.chain, head.ledger_id)
    assert (status.hosts, status.devices, status.living_leases, status.ending_devices) == (2, 10, 1, 0)
    assert status.hosts_stale == ["h0"]


# --- one thing, and why -------------------------------------------------------------------------------------------


async def test_show_by_any_name(running: Running) -> None:
    """Key, id, node-device name, PCI address and path lead to the same device; a name of two leads to both names."""
    path = "/sys/devices/pci0000:00/0000:00:05.0"
    for name in ("pci/0000:00:05.0", DEVICE, "pci_0000_00_05_0", "0000:00:05.0", path):
        (view,) = (await running.ok(questions.Show(name=name))).devices
        assert view.device == DEVICE, name
    await running.grower.report("h2", pci(5))
    ambiguous = await running.ask(questions.Show(name="pci_0000_00_05_0"))
    assert ambiguous.outcome == "not_found"
    assert DEVICE in ambiguous.message
    assert "h2/pci/0000:00:05.0" in ambiguous.message
    (view,) = (await running.ok(questions.Show(name="pci_0000_00_05_0", host="h2"))).devices
    assert view.host == "h2"
    for name in ("no_such_thing", "L999999"):
        assert (await running.ask(questions.Show(name=name))).outcome == "not_found"


async def test_explain_a_device(running: Running) -> None:
    """Nothing in the way, or what is, with its lease; a part is explained by the device that is leased for it."""
    grower = running.grower
    free = await running.ok(questions.Explain(name=DEVICE))
    assert (free.blockers, free.message) == ([], "nothing stands in the way")
    granted = await grower.ask("alice", grower.lease(DEVICE, holder="vm1"))
    for name in (DEVICE, NIC):
        held = await running.ok(questions.Explain(name=name, holder="vm2"), "bob")
        (blocker,) = held.blockers
        assert (blocker.rule, blocker.lease, blocker.holder) == ("same_device", granted.lease, "vm1")
        assert f"leased to vm1 (L{granted.lease})" in held.message
    lease = await running.ok(questions.Explain(name=f"L{granted.lease}"))
    assert lease.message == f"L{granted.lease} of vm1 lives"


async def test_explain_a_request(running: Running) -> None:
    """A request id leads to how it was decided, for who asked; nobody else learns of it."""
    grower = running.grower
    granted = await grower.ask("alice", grower.lease(DEVICE, holder="vm1", request_id="mine"))
    await grower.ask("bob", grower.lease(DEVICE, holder="vm2", request_id="his"))
    mine = await running.ok(questions.Explain(name="mine"), "alice")
    assert mine.answer is not None
    assert (mine.answer.outcome, mine.answer.lease, mine.answer.token) == ("granted", granted.lease, granted.token)
    his = await running.ok(questions.Explain(name="his"), "bob")
    assert his.answer is not None
    assert his.answer.outcome == "refused"
    assert his.message.startswith("refused (device_held) at position")
    assert (await running.ask(questions.Explain(name="mine"), "bob")).outcome == "not_found"


async def test_sync_tells_an_agent_its_host(running: Running) -> None:
    """Pages of descriptions are the picture that the log has, with the run and counter of the agent that asks."""
    grower = running.grower
    # Four cards less, and what is left has changed.
    await grower.report("h1", *(pci(slot, driver="vfio-pci") for slot in (1, 2, 5, 6)), nic())
    source = grower.state.hosts[HostName("h1")].sources["watcher"]
    picture: dict[str, DeviceDescription] = {}
    more = True
    while more:
        reading = await running.ok(questions.Sync(host="h1", after=max(picture, default=""), limit=2))
        assert (reading.source_run, reading.source_counter) == (source.run, source.counter)
        picture |= {description.key: description for description in reading.descriptions}
        more = reading.more
    assert picture == picture_of(grower.state, HostName("h1"))
    assert len(picture) == 5
    unknown = await running.ok(questions.Sync(host="h1", agent="binder"))
    assert (unknown.source_run, unknown.source_counter) == (0, 0)
    assert (await running.ask(questions.Sync(host="nowhere"))).outcome == "not_found"
    assert (await running.ask(questions.Sync(host="h1"), "agent-h1")).outcome == "ok"
    other = await running.ask(questions.Sync(host="h1"), "agent-h10")
    assert (other.outcome, other.field) == ("invalid", "host")


# --- the past -----------------------------------------------------------------------------------------------------


async def told(running: Running, question: questions.History) -> list[HistoryRow]:
    """All pages of a history."""
    rows: list[HistoryRow] = []
    more = True
    while more:
        reading = await running.ok(msgspec.structs.replace(question, after=rows[-1].position if rows else 0))
        rows, more = rows + reading.history, reading.more
    return rows


async def test_the_history_of_a_device(running: Running) -> None:
    """Appearance, request and grant, refusals, expiry and what freed it, each with its time and its position."""
    grower = running.grower
    granted = await grower.ask("alice", grower.lease(DEVICE, holder="vm1", ttl_ms=2_000, request_id="ask-1"))
    at_ns = grower.now_ns
    refused = await grower.ask("bob", grower.lease("pci_0000_00_05_0", holder="vm2", request_id="ask-2"))
    again = await grower.ask("bob", grower.lease(DEVICE, holder="vm2", request_id="ask-3"))
    await grower.ask("carol", grower.lease("h1/pci/0000:00:06.0", holder="vm3"))
    await grower.pass_time(3)
    rows = await told(running, questions.History(name=DEVICE))
    kinds = [row.type for row in rows]
    assert kinds == [
        "device_appeared.v1",
        "lease_granted.v2",
        "request_refused.v1",
        "refusals_repeated.v1",
        "lease_expired.v1",
        "device_freed.v1",
    ]
    appeared, grant, refusal, repeated, expiry, freed = rows
    lease = f"L{granted.lease}"
    assert (grant.position, grant.decided_at_ns) == (granted.position, at_ns)
    assert grant.text == f"granted to vm1 as {lease}: {DEVICE}, for 2 s (asked by alice, request ask-1)"
    assert json.loads(bytes(grant.event))["request"]["request_id"] == "ask-1"
    assert refusal.position == refused.position
    expected = f"lease refused to vm2: {DEVICE}: it is leased to vm1 ({lease}) (asked by bob, request ask-2)"
    assert refusal.text == expected
    assert repeated.position == again.position
    assert "once more (asked by bob, request ask-3)" in repeated.text
    assert expiry.text == f"{lease} of vm1 expired: its time was over and no renewal had come"
    assert expiry.decided_at_ns == freed.decided_at_ns == grower.now_ns
    assert freed.text == f"{DEVICE} freed from {lease}: no user is seen by the host's watcher"
    assert appeared.text.startswith(f"{DEVICE} appeared")
    positions = [row.position for row in rows]
    assert positions == sorted(set(positions))


async def test_a_history_is_found_by_any_name_and_kind(running: Running) -> None:
    """Devices, leases, holders, hosts and principals, bare or by kind; of a part, also of what it is a part of."""
    grower = running.grower
    granted = await grower.ask("alice", grower.lease(DEVICE, holder="vm1"))
    lease = f"L{granted.lease}"
    for name, kind, subject in (
        ("pci_0000_00_05_0", "", f"device {DEVICE}"),
        ("net_eth0_52_54_00_aa_bb_cc", "", f"device {NIC}, a part of {DEVICE}"),
        (lease, "", f"lease {lease}"),
        ("vm1", "", "holder vm1"),
        ("h1", "", "host h1"),
        ("alice", "", "principal alice"),
        ("alice", "principal", "principal alice"),
    ):
        reading = await running.ok(questions.History(name=name, kind=kind))
        assert reading.subject == subject
        assert granted.position in [row.position for row in reading.history], name
    for name, kind in (("vm1", "lease"), ("nobody", ""), ("h1", "device"), ("L12345", ""), ("alice", "holder")):
        missing = await running.ask(questions.History(name=name, kind=kind))
        assert missing.outcome == "not_found", name
        assert name in missing.message


async def test_histories_come_in_pages(running: Running) -> None:
    """Pages of any size, rows packed into one record, and rows not on the disk yet: together the whole history."""
    grower = running.grower
    requests = [grower.lease(f"h1/pci/0000:00:0{slot}.0", holder="many") for slot in (1, 2, 3, 4)]
    answers = await grower.ask_all("alice", *requests)
    assert len({sequence_of(answer.position) for answer in answers}) == 1
    for _ in range(5):
        await grower.turn(DEVICE, holder="many")
    whole = (await running.ok(questions.History(name="many"))).history
    assert len(whole) == 4 + 5 * 3
    for limit in (1, 3, 19):
        assert await told(running, questions.History(name="many", limit=limit)) == whole


async def test_a_history_that_takes_too_long_says_that_there_is_more(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page ends when its share of bytes is read, and the pages still make the whole."""
    for _ in range(12):
        await running.grower.turn(DEVICE, holder="vm1")
    whole = await told(running, questions.History(name="vm1"))
    monkeypatch.setattr(past, "READ_BYTES_MAX", 1)
    first = await running.ok(questions.History(name="vm1"))
    assert first.more
    assert 0 < len(first.history) < len(whole)
    assert await told(running, questions.History(name="vm1")) == whole
