"""What the query service answers about node devices and orders to hosts, on a real server."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from leasehold.events import questions
from leasehold.events.capabilities import NewVport
from leasehold.events.errors import InvalidInputError
from leasehold.events.identities import HostName, RequestId
from leasehold.events.inputs import CREATOR, CreateDeviceRequest
from leasehold.events.views import DeviceView
from leasehold.projections.nodedev import is_wanted, wanted_by
from leasehold.projections.reporting import Reporter
from leasehold.projections.views import device_view
from leasehold.services.query.decoding import decode_question
from tests.integration.asking import Running, asking_at
from tests.nodedev.machine import HBA, NIC, everything

FILTERS = (
    {"cap": "net"},
    {"cap": "vports"},
    {"cap": "vport_ops,storage"},
    {"bus": "pci"},
    {"bus": "usb", "host": "h2"},
    {"driver": "igb"},
    {"driver": "none", "bus": "pci"},
    {"parent": "computer"},
    {"parent": "pci_0000_05_00_0"},
    {"parent": f"h3/{HBA}/scsi/0", "cap": "storage"},
    {"present": True},
)


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with asking_at(tmp_path) as running:
        for host in ("h2", "h3"):
            await running.grower.report(host, *everything())
        yield running


async def all_of(running: Running, question: questions.ListDevices) -> list[DeviceView]:
    """All pages."""
    rows: list[DeviceView] = []
    more = True
    while more:
        reading = await running.ok(msgspec.structs.replace(question, after=rows[-1].device if rows else ""))
        rows, more = rows + reading.devices, reading.more
    return rows


async def test_lists_and_counts_by_what_is_said(running: Running) -> None:
    """By capability, bus, driver and parent, on all hosts or one: what a walk over the state finds, in pages."""
    state = running.grower.state
    for said in FILTERS:
        question = msgspec.convert(said, questions.ListDevices)
        wanted = wanted_by(state, question)
        expected = [
            device
            for device, row in sorted(state.devices.items())
            if is_wanted(wanted, row) and row.host == (question.host or row.host)
        ]
        assert expected, said
        rows = [device_view(state, device) for device in expected]
        for limit in (3, 1_000):
            assert await all_of(running, msgspec.structs.replace(question, limit=limit)) == rows, said
        counted = await running.ok(msgspec.structs.replace(question, count_only=True))
        assert (counted.count, counted.devices) == (len(expected), []), said


async def test_lists_follow_what_happens(running: Running) -> None:
    """A driver that changes and a device that goes are seen by the next question; what is missing is shown in the list
    of all alone.
    """
    grower, kept = running.grower, [each for each in everything() if each.key != f"{NIC}/net/0"]
    question = questions.ListDevices(driver="igb", host="h2")
    assert [row.key for row in await all_of(running, question)] == [NIC]
    await grower.report(
        "h2", *(msgspec.structs.replace(each, driver="vfio-pci") if each.key == NIC else each for each in kept)
    )
    assert await all_of(running, question) == []
    (card,) = await all_of(running, questions.ListDevices(driver="vfio-pci", host="h2"))
    assert card.key == NIC
    assert await all_of(running, questions.ListDevices(parent=f"h2/{NIC}")) == []
    states = {row.key: row.state for row in await all_of(running, questions.ListDevices(host="h2"))}
    assert states[f"{NIC}/net/0"] == "missing"
    counts = [
        (await running.ok(questions.ListDevices(host="h2", cap=cap, count_only=True))).count for cap in ("", "net")
    ]
    assert counts == [len(kept), sum(each.kind == "net" for each in kept)]


async def test_a_parent_or_a_host_that_is_none_is_named(running: Running) -> None:
    """Nothing known by that name is not an empty list."""
    for question, named in (
        (questions.ListDevices(parent="pci_no"), "pci_no"),
        (questions.ListDevices(host="nowhere", count_only=True), "nowhere"),
        (questions.ListOrders(host="nowhere"), "nowhere"),
    ):
        reading = await running.ask(question)
        assert reading.outcome == "not_found"
        assert named in reading.message


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({"cap": "planet"}, "cap"),
        ({"cap": "net,"}, "cap"),
        ({"cap": "net,Pci"}, "cap"),
        ({"bus": "isa"}, "bus"),
        ({"driver": "two\nlines"}, "driver"),
        ({"parent": "x" * 1_025}, "parent"),
        ({"count_only": 1}, "count_only"),
        ({"present": "yes"}, "present"),
    ],
)
def test_words_that_are_none_are_named(said: dict[str, object], field: str) -> None:
    """With the words that there are."""
    for verb in ("list_devices", "devices_at"):
        with pytest.raises(InvalidInputError) as caught:
            decode_question(verb, json.dumps(said).encode())
        assert caught.value.field == field
        assert field not in ("cap", "bus") or "pci" in str(caught.value)


async def test_orders_of_hosts_and_what_an_agent_is_to_do(running: Running) -> None:
    """An order is listed, of its host alone, and told to the agent that it is for when that asks what the log has."""
    grower = running.grower
    creator = Reporter(HostName("h2"), CREATOR, 1)
    for message in (creator.starts(), *creator.synced({}, {})):
        grower.sequencer.observe(1_000_000 + message.counter, message)
        await grower.commit()
    names = {"wwnn": "2000000000000001", "wwpn": "2000000000000002"}
    request = CreateDeviceRequest(
        request_id=RequestId("make"),
        issued_at_ns=grower.now_ns,
        device=NewVport(parent="scsi_host2", **names),
        host="h2",
    )
    answer = await grower.ask("alice", request)
    assert (answer.outcome, answer.state) == ("ordered", "waiting")
    for host, found in (("", [answer.order]), ("h2", [answer.order]), ("h3", [])):
        assert [row.order for row in (await running.ok(questions.ListOrders(host=host))).orders] == found
    (order,) = (await running.ok(questions.ListOrders())).orders
    assert (order.host, order.agent, order.asked_by, order.request_id) == ("h2", CREATOR, "alice", "make")
    assert (await running.ok(questions.ListOrders(after=answer.order))).orders == []
    assert (await running.ok(questions.Sync(host="h2", agent=CREATOR))).orders == [order]
    assert (await running.ok(questions.Sync(host="h2"))).orders == []
