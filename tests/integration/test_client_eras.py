"""A client that outlives a restore: what it has seen of the log before does not keep it from asking."""

from collections import deque

import msgspec
import pytest

from leasehold.events import codec, inputs
from leasehold.events.answers import Answer
from leasehold.events.errors import UnavailableError
from leasehold.events.identities import RequestId
from leasehold.events.questions import ListHosts, Reading
from leasehold.services.client import Client
from leasehold.services.connection import Reply


class _Bus:
    """Answers in turn, and keeps what was asked."""

    is_connected = True

    def __init__(self, *answers: Answer | Reading) -> None:
        self._answers = deque(answers)
        self.asked: list[bytes] = []

    async def ask(self, _subject: str, body: bytes, *, timeout_s: float) -> Reply:
        assert timeout_s > 0
        self.asked.append(body)
        return Reply(0, b"", codec.encode(self._answers.popleft()))

    async def note(self, *, well: bool) -> None:
        """It was heard, or not."""


def client_on(bus: _Bus, monkeypatch: pytest.MonkeyPatch, patience_s: float = 5.0) -> Client:
    """A client that talks to nobody else."""
    client = Client(patience_s=patience_s)
    monkeypatch.setattr(Client, "connection", bus)
    monkeypatch.setattr(client, "_subject", lambda verb: verb)
    return client


def _min_positions(bus: _Bus) -> list[int]:
    return [codec.decode_checked(_listing, body, what="question").min_position for body in bus.asked]


_listing = msgspec.json.Decoder(ListHosts)


async def test_a_restored_log_is_asked_from_its_own_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers below what was seen are not waited for any more, once one says that it is of a newer era."""
    bus = _Bus(
        Reading(outcome="ok", as_of=5_000),
        Reading(outcome="unavailable", as_of=1_000, message="not read yet"),
        Reading(outcome="unavailable", as_of=1_000, era=1, message="not read yet"),
        Reading(outcome="ok", as_of=1_200, era=1),
        Reading(outcome="ok", as_of=4_000, era=1),
    )
    client = client_on(bus, monkeypatch)
    await client.hosts()
    await client.hosts()
    assert client.seen == 1_200
    await client.hosts()
    assert _min_positions(bus) == [0, 5_000, 5_000, 1_000, 1_200]
    assert client.seen == 4_000


async def test_an_older_era_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A place that somebody tells of the log before raises nothing."""
    bus = _Bus(Reading(outcome="ok", as_of=1_200, era=2), Reading(outcome="ok", as_of=9_000, era=1))
    client = client_on(bus, monkeypatch)
    await client.hosts()
    await client.hosts()
    assert client.seen == 1_200


async def test_answers_to_requests_tell_the_era_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who only leases learns of the restore from the answer to a request."""
    bus = _Bus(
        Answer(outcome="granted", as_of=5_000),
        Answer(outcome="granted", as_of=1_500, era=1),
    )
    client = client_on(bus, monkeypatch)
    for number in range(2):
        request = inputs.RenewRequest(request_id=RequestId(f"r{number}"), issued_at_ns=1, lease=256, token=256)
        await client.ask(request)
    assert client.seen == 1_500


async def test_in_one_era_nothing_is_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that lags behind is asked again, and given up in the end."""
    bus = _Bus(Reading(outcome="ok", as_of=5_000), *[Reading(outcome="unavailable", as_of=1_000)] * 50)
    client = client_on(bus, monkeypatch, patience_s=0.3)
    await client.hosts()
    with pytest.raises(UnavailableError):
        await client.hosts()
    assert set(_min_positions(bus)[1:]) == {5_000}
