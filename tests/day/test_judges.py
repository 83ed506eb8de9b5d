"""The judges of the day notice what they are there for."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg

from leasehold.events import inputs
from leasehold.events.answers import Answer
from leasehold.events.capabilities import NewVport
from leasehold.events.cloudevents import Attributes, header_lines, raw_headers
from leasehold.events.identities import Holder, RequestId
from leasehold.services.asking import create_device_request
from leasehold.services.client import Client
from tests.day.feed import Told
from tests.day.load import Load, Said
from tests.day.oracle import RawLog
from tests.day.orders import Orders

EVENTS: tuple[dict[str, Any], ...] = (
    {"type": "host_registered.v1", "host": "h", "mode": "watched"},
    {"type": "lease_granted.v2", "request": {"principal": "a", "request_id": "r1"}, "holder": "v", "devices": ["h/x"]},
    {"type": "lease_expired.v1", "lease": 257},
    {"type": "request_refused.v1", "request": {"principal": "a", "request_id": "r2"}},
)


def _log(*more: dict[str, Any]) -> RawLog:
    log = RawLog()
    log.add(1, json.dumps({"decided_at_ns": 5, "steps": [{"events": [*EVENTS, *more]}]}).encode())
    return log


# --- the feed -----------------------------------------------------------------------------------------------------


def _message(position: int, event: dict[str, Any], part: int = 0, parts: int = 1) -> Msg:
    said = Attributes(
        cluster="lab", ledger_id="0123456789abcdef", era=0, position=position, part=part, parts=parts, previous=0,
        tag=event["type"], at_ns=5,
    )  # fmt: skip
    headers = raw_headers(f"NATS/1.0\r\n{header_lines(said)}\r\n".encode())
    return Msg(_client=NatsClient(), data=json.dumps(event).encode(), headers=headers)


def _messages() -> list[Msg]:
    """One for each event; the last one, of two devices, in two parts. Only the first has a body by its schema."""
    parts = [(256, 0, 1), (257, 0, 1), (258, 0, 1), (259, 0, 2), (259, 1, 2)]
    return [_message(position, EVENTS[position - 256], part, count) for position, part, count in parts]


def _told(messages: list[Msg]) -> list[str]:
    """What is wrong with the messages, but for their bodies, which are cut short here."""
    return [problem for problem in Told(messages, _log()).problems if "required property" not in problem]


FAULTS: dict[str, Callable[[list[Msg]], object]] = {
    "not told": lambda messages: messages.pop(1),
    "told twice": lambda messages: messages.insert(2, messages[1]),
    "not all parts": lambda messages: messages.pop(),
    "in no record": lambda messages: messages.insert(0, _message(255, EVENTS[0])),
    "stands behind": lambda messages: messages.insert(0, messages.pop(2)),
}


@pytest.mark.parametrize("what", FAULTS)
def test_faults_of_the_feed_are_found(what: str) -> None:
    """An event that is missing, doubled, in parts, of no record or out of order is found; as it must be, nothing is."""
    messages = _messages()
    assert _told(messages) == []
    FAULTS[what](messages)
    assert any(what in problem for problem in _told(messages))


def test_messages_that_are_not_as_described_are_found() -> None:
    """A body without a field, and headers without one, are told."""
    assert Told([_message(256, EVENTS[0])], _log()).checked == {"host_registered.v1": 1}
    less = {name: value for name, value in EVENTS[0].items() if name != "mode"}
    assert any("'mode' is a required property" in each for each in Told([_message(256, less)], _log()).problems)
    bare = _message(256, EVENTS[0])
    del (bare.headers or {})["ce-time"]
    assert any("'ce-time' is a required property" in each for each in Told([bare], _log()).problems)


# --- what was answered --------------------------------------------------------------------------------------------


def _problems(tmp_path: Path, outcome: str, position: int, request_id: str, *more: dict[str, Any]) -> list[str]:
    async def check() -> list[str]:
        load = Load(Client(tmp_path), ["h/x"], seed=0, name="p")
        request = inputs.LeaseRequest(
            request_id=RequestId(request_id), issued_at_ns=0, devices=("h/x",), holder=Holder("v"), ttl_ms=1_000
        )
        load.said.append(Said("a", request, Answer(outcome=outcome, position=position)))
        return load.check(_log(*more))

    return asyncio.run(check())


def test_lost_and_doubled_answers_are_found(tmp_path: Path) -> None:
    """A grant that was told and is not in the log, is elsewhere, or is there twice; and a refusal that granted."""
    assert _problems(tmp_path, "granted", 257, "r1") == []
    assert _problems(tmp_path, "refused", 259, "r2") == []
    assert "the log has it at []" in _problems(tmp_path, "granted", 257, "r3")[0]
    assert "was told lease_granted at 300" in _problems(tmp_path, "granted", 300, "r1")[0]
    again = dict(EVENTS[1], devices=["h/y"])
    assert "position=260" in _problems(tmp_path, "granted", 257, "r1", again)[0]
    assert "was refused, and did lease_granted" in _problems(tmp_path, "refused", 257, "r1")[0]


# --- what was ordered ---------------------------------------------------------------------------------------------


def _of_orders(tmp_path: Path, answer: Answer, there: set[str], *more: dict[str, Any]) -> list[str]:
    ordered = {
        "type": "host_ordered.v1", "host": "h", "order": {"type": "create_mdev"},
        "request": {"principal": "a", "request_id": "r1"},
    }  # fmt: skip

    async def check() -> list[str]:
        orders = Orders(Client(tmp_path), 0)
        orders.said.append(Said("a", create_device_request(NewVport(), request_id="r1"), answer))
        return orders.check(_log(ordered, *more), there)

    return asyncio.run(check())


def test_orders_that_came_to_nothing_are_found(tmp_path: Path) -> None:
    """An order that is not over, one that was told otherwise, and a host that is not as the orders have left it."""
    done = {"type": "order_carried_out.v1", "host": "h", "order": 260, "device": "x"}
    failed = {"type": "order_failed.v1", "host": "h", "order": 260, "reason": "no"}
    said = Answer(outcome="ordered", order=260, state="done")
    assert _of_orders(tmp_path, said, {"x"}, done) == []
    assert "order 260 is not over" in _of_orders(tmp_path, said, set())[0]
    assert "was told to be done, and ended as" in _of_orders(tmp_path, said, set(), failed)[0]
    assert "by the orders there are ['x']; on the host there are []" in _of_orders(tmp_path, said, set(), done)[0]
    elsewhere = Answer(outcome="ordered", order=300, state="done")
    assert "the log has it at [260]" in _of_orders(tmp_path, elsewhere, {"x"}, done)[0]
