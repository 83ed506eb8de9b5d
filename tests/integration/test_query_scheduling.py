"""What the query service answers about classes, quotas, the queue, what would be decided, and why: on a real server."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from leasehold.events import codec, questions, schedule_inputs
from leasehold.events.identities import Principal
from leasehold.events.inputs import LeaseRequest
from leasehold.events.refusals import RefusalCode
from leasehold.events.scheduling import Need
from tests.integration.asking import DEVICE, Running, asking_at

OPS = "ops"


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with asking_at(tmp_path) as running:
        yield running


async def say(running: Running, kind: type[Any], **fields: Any) -> None:
    """An operator says something, which must be taken."""
    ids = running.grower.lease(DEVICE, holder="x")
    request = kind(request_id=ids.request_id, issued_at_ns=ids.issued_at_ns, **fields)
    answer = await running.grower.ask(OPS, request)
    assert answer.outcome == "set", answer


def wanting(running: Running, **fields: Any) -> LeaseRequest:
    """A request for all cards of the host, by their class."""
    named = running.grower.lease(DEVICE, holder="gang")
    needs = (Need(device_class="nic", count=8),)
    return msgspec.structs.replace(named, devices=(), needs=needs, **fields)


async def set_up(running: Running) -> tuple[int, int]:
    """A class, a quota, a lease and somebody who waits for it: the lease and the place in the queue."""
    await say(running, schedule_inputs.SetClassRequest, name="nic", select='device.kind == "pci"')
    await say(running, schedule_inputs.SetQuotaRequest, tenant=Principal("bob"), devices_max=9, device_class="nic")
    held = await running.grower.ask("alice", running.grower.lease(DEVICE, holder="db"))
    waits = await running.grower.ask("bob", wanting(running, wait_ms=60_000))
    assert waits.outcome == "queued", waits
    return held.lease, waits.queued


async def test_lists(running: Running) -> None:
    """Classes, quotas, the queue and marks are listed; what is asked wrongly is refused by the field."""
    _, queued = await set_up(running)
    await say(running, schedule_inputs.CordonRequest, device="h1/pci/0000:00:07.0", reason="the fan is loud")
    (view,) = (await running.ok(questions.ListClasses())).classes
    assert (view.name, view.devices, view.leased, view.queued, view.out) == ("nic", 8, 1, 1, 1)
    assert (view.free, view.kept) in ((0, 6), (6, 0)), "kept for who waits, unless a gang of all cannot be had any more"
    free = await running.ok(questions.ListClasses(name="nic", free=True, limit=1_000))
    assert len(free.devices) == view.free
    assert (await running.ask(questions.ListClasses(name="gpu"))).outcome == "not_found"
    wrong = await running.ask(questions.ListClasses(free=True))
    assert (wrong.outcome, wrong.field) == ("invalid", "name")
    (quota,) = (await running.ok(questions.ListQuotas(tenant="bob"))).quotas
    assert (quota.device_class, quota.devices_max, quota.devices) == ("nic", 9, 0)
    (row,) = (await running.ok(questions.ListQueue(device_class="nic"))).queue
    assert (row.queued, row.place, row.needs) == (f"Q{queued}", 1, "8 of class nic")
    (mark,) = (await running.ok(questions.ListTaints(host="h1"))).taints
    assert (mark.target, mark.kind, mark.by) == ("h1/pci/0000:00:07.0", "cordon", OPS)
    gone = await running.ask(questions.ListQueue(after="Q1"))
    assert (gone.outcome, gone.field) == ("invalid", "after")


async def test_what_would_be_decided(running: Running) -> None:
    """A body is considered as it would be sent, without ids, too; nothing of it is left, and what cannot be read is
    refused by its field.
    """
    lease, _ = await set_up(running)
    before = (await running.ok(questions.Status())).status
    body = {"device": DEVICE, "name": "drain", "reason": "new fans", "effect": "evict"}
    reading = await running.ok(questions.Consider(verb="taint", request=msgspec.Raw(codec.encode(body))), OPS)
    assert reading.answer is not None
    assert (reading.answer.outcome, reading.answer.position) == ("set", 0)
    assert [(each.lease, each.holder, each.principal) for each in reading.broken] == [(f"L{lease}", "db", "alice")]
    wanted = {"holder": "me", "ttl_ms": 60_000, "needs": [{"device_class": "nic"}], "host": "h1"}
    reading = await running.ok(questions.Consider(verb="lease", request=msgspec.Raw(codec.encode(wanted))))
    assert reading.answer is not None
    assert reading.answer.token == reading.answer.lease == 0
    assert (await running.ok(questions.Status())).status == before
    for verb, said, field in (
        ("lend", wanted, "verb"),
        ("lease", [], "request"),
        ("lease", {**wanted, "ttl_ms": 1}, "ttl_ms"),
        ("lease", {**wanted, "needs": [{"select": "device.kind =="}]}, "needs[0].select"),
    ):
        wrong = await running.ask(questions.Consider(verb=verb, request=msgspec.Raw(codec.encode(said))))
        assert (wrong.outcome, wrong.field) == ("invalid", field), wrong


async def test_why(running: Running) -> None:
    """Of a place in the queue, of a request, of a class it is told why it stands so, by whoever may ask; each has its
    history.
    """
    lease, queued = await set_up(running)
    waits = await running.ok(questions.Explain(name=f"Q{queued}"), "carol")
    assert waits.explanation is not None
    assert waits.explanation.of == "queued"
    assert waits.explanation.refusal is not None
    assert waits.explanation.refusal.code == RefusalCode.NOT_ENOUGH
    assert f"L{lease}" in waits.message
    his = await running.ok(questions.Explain(name=waits.queue[0].request_id), "bob")
    assert his.answer is not None
    assert (his.answer.outcome, his.answer.queued) == ("queued", queued)
    assert his.explanation == waits.explanation
    of_class = await running.ok(questions.Explain(name="nic"))
    assert of_class.explanation is not None
    assert of_class.explanation.of == "class"
    assert (await running.ask(questions.Explain(name=f"Q{queued + 1}"))).outcome == "not_found"
    history = await running.ok(questions.History(name=f"Q{queued}"))
    assert [row.type for row in history.history] == ["request_queued.v1"]
    assert (await running.ok(questions.History(name="nic", kind="class"))).subject == "class nic"
