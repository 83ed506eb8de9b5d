"""Questions of the past at the door: what is wrong is refused with its field, before anything is looked up."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from leasehold.events.errors import InvalidInputError, StorageError, UnavailableError
from leasehold.events.questions import PAST_QUESTIONS, Moment, Owners, Utilisation
from leasehold.services.archive.answers import PastAnswerer
from leasehold.services.archive.ledger import ArchivedLedger
from leasehold.services.archive.lookup import Glass
from leasehold.services.query.decoding import decode_question
from tests.past.logs import ASKER, archived
from tests.projections.ledger import SECOND, START_NS, ledger_with_hosts

WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("owners", {"at": {"position": 1, "ns": 1}}, "at"),
    ("owners", {"at": {"position": -1}}, "at.position"),
    ("owners", {"at": {"ns": 2**63}}, "at.ns"),
    ("owners", {"at": {"when": 1}}, "at.when"),
    ("owners", {"at": "yesterday"}, "at"),
    ("owners", {"limit": 0}, "limit"),
    ("owners", {"limit": 1_001}, "limit"),
    ("owners", {"host": "H 1"}, "host"),
    ("owners", {"device": "x" * 2_000}, "device"),
    ("owners", {"device": "a\nb"}, "device"),
    ("owners", {"surplus": 1}, "surplus"),
    ("devices_at", {"after": 7}, "after"),
    ("diff", {}, "since"),
    ("diff", {"since": {}, "to": {"ns": -1}}, "to.ns"),
    ("who", {"device": ""}, "device"),
    ("who", {}, "device"),
    ("who", {"device": "d", "after": -1}, "after"),
    ("blame", {"request_id": ""}, "request_id"),
    ("blame", {"request_id": "r", "depth": 0}, "depth"),
    ("blame", {"request_id": "r", "principal": "a b"}, "principal"),
    ("utilisation", {"since": {}, "by": "colour"}, "by"),
    ("utilisation", {"since": {}, "every_ns": 1}, "every_ns"),
    ("utilisation", {"since": {}, "holder": "\0"}, "holder"),
]


@pytest.mark.parametrize(("verb", "body", "field"), WRONG)
def test_what_is_wrong_is_named(verb: str, body: dict[str, Any], field: str) -> None:
    """A question that cannot be taken is refused, and the field is named."""
    with pytest.raises(InvalidInputError) as caught:
        decode_question(verb, json.dumps(body).encode())
    assert caught.value.field == field, str(caught.value)


def test_what_is_left_out_has_a_meaning() -> None:
    """Each question can be asked with no more than what it needs."""
    for verb, body in {
        "owners": b"", "devices_at": b"{}", "diff": b'{"since":{}}', "who": b'{"device":"h/pci"}',
        "blame": b'{"request_id":"r"}', "utilisation": b'{"since":{}}', "archived": b"",
    }.items():  # fmt: skip
        assert type(decode_question(verb, body)) is PAST_QUESTIONS[verb]


async def test_what_cannot_be_answered_says_why(tmp_path: Path) -> None:
    """A position that was not read yet, a beginning behind the end, no time that is known, and no models at all."""
    async with archived(tmp_path, ledger_with_hosts().bodies) as past:
        with pytest.raises(UnavailableError, match="has not been read yet"):
            await past.ask(Owners(at=Moment(position=2**40)))
        with pytest.raises(InvalidInputError) as caught:
            await past.ask(Utilisation(since=Moment(), to=Moment(ns=1)))
        assert caught.value.field == "since"
        later = await past.ask(Owners(at=Moment(ns=START_NS + 10**6 * SECOND)))
        assert later.at_position == later.as_of
        first = await past.ask(Owners(at=Moment(ns=1)))
        assert (first.outcome, first.owners, first.at_ns) == ("ok", [], 0)
    nothing = PastAnswerer(ArchivedLedger(tmp_path), tmp_path / "none.sqlite")
    with pytest.raises(StorageError):
        await nothing.answer(Owners(), ASKER)


async def test_an_answer_takes_no_longer_than_it_may(tmp_path: Path) -> None:
    """What SQLite would never come to an end with is broken off, and the connection is good for the next question."""
    async with archived(tmp_path, ledger_with_hosts().bodies) as past:
        glass = await Glass.open(tmp_path / "models.sqlite")
        with pytest.raises(UnavailableError, match="takes too long"):
            async with glass.look(past.ledger, time.monotonic() + 0.1) as look:
                await look.rows("WITH RECURSIVE n(x) AS (VALUES (1) UNION ALL SELECT x FROM n) SELECT max(x) FROM n")
        async with glass.look(past.ledger, time.monotonic() + 60) as look:
            assert await look.rows("SELECT count(*) FROM device")
        await glass.close()


async def test_an_archive_without_records(tmp_path: Path) -> None:
    """Where nothing was ever archived, everything is empty and nothing fails."""
    async with archived(tmp_path, []) as past:
        page = await past.ask(Owners())
        assert (page.outcome, page.as_of, page.owners) == ("ok", 0, [])
        assert (await past.ask(Utilisation(since=Moment()))).usage == []
