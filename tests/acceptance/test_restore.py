"""The log's store is wiped and restored from its archive, with the real processes and the real command line."""

import asyncio
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from leasehold import Client
from leasehold.events import codec, event_types
from leasehold.events.event_types import Event
from leasehold.events.identities import DeviceId
from leasehold.events.position import token_of
from leasehold.events.record import Record
from leasehold.projections import evolve
from leasehold.projections.fencing import check_token
from leasehold.projections.state import State
from leasehold.services.ledger.port import Entry
from leasehold.services.restoring import NOTE_FILE
from leasehold.services.rewriting import entries_of
from tests.support.running import HOST, leasehold, running_up

ELSEWHERE = "elsewhere"
PATIENCE_S = 30.0


class Place:
    """A data directory, and what becomes of it."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self._folder = folder
        self._wiped = 0

    def archive(self, name: str = "") -> Path:
        """The archive, or a copy of it under that name."""
        return self._folder / name if name else self.data / "archive"

    def wipe(self) -> None:
        """The log's store is gone."""
        self._wiped += 1
        (self.data / "jetstream").rename(self._folder / f"lost-{self._wiped}")

    def records(self) -> list[Record]:
        """The log as it is now, from a running `up`."""
        return asyncio.run(self._records())

    async def _records(self) -> list[Record]:
        async with Client(self.data) as client:
            ledger = client.ledger()
            try:
                found = entries_of(ledger, await ledger.last_sequence())
                return [codec.decode_record(entry.body, entry.sequence) async for entry in _all(found)]
            finally:
                await ledger.close()

    def wait_for_archive(self) -> None:
        """All of the log is archived, and its read models go as far."""
        give_up_s = time.monotonic() + PATIENCE_S
        while True:
            status = leasehold(self.data, "status", "--json").object
            archive = status["archive"]
            # One that lies there still may be of the log before a restore, and have more records than this one.
            is_of_this = archive and (archive["ledger_id"], archive["era"]) == (status["ledger_id"], status["era"])
            if is_of_this and min(archive["sequence"], archive["modelled"]) >= status["sequence"]:
                return
            assert time.monotonic() < give_up_s, status


async def _all(entries: AsyncGenerator[Entry, None]) -> AsyncIterator[Entry]:
    async with aclosing(entries) as closing:
        async for entry in closing:
            yield entry


def state_of(records: list[Record]) -> State:
    """What they lead to."""
    state = State()
    for sequence, record in enumerate(records, 1):
        evolve.fold(state, sequence, codec.encode(record))
    return state


def events_of(records: list[Record]) -> list[Event]:
    """In order."""
    return [event for record in records for step in record.steps for event in step.events]


def free_devices(data: Path) -> list[str]:
    """Those that can be leased by themselves."""
    rows = leasehold(data, "devices", "--json").objects
    return [row["device"] for row in rows if row["state"] == "free" and row["host"] == HOST]


def grant(data: Path, device: str, holder: str, request_id: str = "") -> dict[str, Any]:
    """A lease for an hour."""
    more = ["--request-id", request_id] if request_id else []
    done = leasehold(data, "lease", device, "--for", holder, "--ttl", "1h", "--json", *more)
    assert done.code == 0, done.err
    return done.object


def turns(data: Path, device: str, count: int) -> None:
    """Lease a device and give it back, so many times."""

    async def take_turns() -> None:
        async with Client(data) as client:
            for number in range(count):
                async with client.lease(device, holder=f"turn {number}"):
                    pass

    asyncio.run(take_turns())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Nothing has run there yet."""
    return Place(tmp_path)


def test_ownership_as_archived_old_tokens_refused_hosts_asked_to_reconcile(place: Place) -> None:
    """With all archived nothing is lost: each lease is its holder's, no older token opens anything, and a host is not
    granted from before it has reported again; then all goes on.
    """
    data = place.data
    with running_up(data):
        first, second, *_ = free_devices(data)
        kept = grant(data, first, "vm one", request_id="grant-of-vm-one")
        given_back = grant(data, second, "vm two")
        assert leasehold(data, "release", given_back["lease"], "--token", str(given_back["token"])).code == 0
        place.wait_for_archive()
    place.wipe()
    refused = leasehold(data, "up", "--data", str(data))
    assert refused.code != 0
    assert "LEDGER" in refused.err
    restored = leasehold(data, "restore-ledger", str(place.archive()), "--reason", "the disk died", "--json")
    assert restored.code == 0, restored.err
    assert (restored.object["era"], restored.object["lost"]) == (1, "")
    again = leasehold(data, "restore-ledger", str(place.archive()))
    assert again.code == 2
    assert "holds" in again.err

    with running_up(data, host=ELSEWHERE):
        # The host's own agents do not run: nobody has reported.
        (lease,) = leasehold(data, "leases", "--json").objects
        assert (lease["lease"], lease["holder"], lease["state"]) == (kept["lease"], "vm one", "living")
        stale = {row["host"]: row["stale"] for row in leasehold(data, "hosts", "--json").objects}
        assert "the ledger was restored" in stale[HOST]
        refused = leasehold(data, "lease", second, "--for", "vm three", "--json")
        assert (refused.code, refused.object["code"]) == (3, "host_stale")
        old = leasehold(data, "renew", kept["lease"], "--token", str(kept["token"]), "--json")
        assert (old.code, old.object["code"]) == (3, "token_stale")
        told = leasehold(data, "release", kept["lease"], "--token", str(kept["token"]))
        assert (told.code, "before the ledger was restored" in told.err) == (3, True)
        records = place.records()
        check_old_tokens(records, int(kept["token"]))
        token = new_token(data, kept, first)
        assert leasehold(data, "renew", kept["lease"], "--token", str(token)).code == 0

    with running_up(data):
        place.wait_for_archive()
        three = grant(data, second, "vm three")
        assert three["token"] > token
        assert leasehold(data, "release", kept["lease"], "--token", str(token)).code == 0
        check_order(place.records())
        place.wait_for_archive()
    verified = leasehold(data, "verify")
    assert verified.code == 0, verified.err


def new_token(data: Path, kept: dict[str, Any], device: str) -> int:
    """The request of the grant, asked again, is the same lease with another token; the list of leases has it, too."""
    again = grant(data, device, "vm one", request_id="grant-of-vm-one")
    assert again["lease"] == kept["lease"]
    assert again["token"] == token_of(1, kept["token"])
    (lease,) = leasehold(data, "leases", "--json").objects
    assert lease["token"] == again["token"]
    return int(again["token"])


def check_old_tokens(records: list[Record], granted: int) -> None:
    """At each device's door no token of the era before is let in, whoever shows it."""
    state = state_of(records)
    assert state.head.era == 1
    assert any(row.lease for row in state.devices.values())
    for device, row in state.devices.items():
        assert row.floor >= token_of(1, 0)
        for token in range(granted - 600, granted + 600):
            assert check_token(state, DeviceId(device), token) is not None


def check_order(records: list[Record]) -> None:
    """Behind the restore nothing is granted before the host has reported, and the inbox goes on where it was."""
    events = events_of(records)
    at = next(number for number, each in enumerate(events) if isinstance(each, event_types.LedgerRestored))
    behind = events[at + 1 :]
    picture = next(
        number
        for number, each in enumerate(behind)
        if isinstance(each, event_types.PictureCompleted) and each.host == HOST
    )
    granted = next(number for number, each in enumerate(behind) if isinstance(each, event_types.LeaseGranted))
    assert picture < granted
    (sequence,) = [number for number, record in enumerate(records, 1) if record.era != records[number - 2].era][-1:]
    assert records[sequence - 1].observed_through == records[sequence - 2].observed_through > 0
    assert records[-1].observed_through > records[sequence - 1].observed_through


def test_an_older_archive_loses_what_came_after_it(place: Place) -> None:
    """A copy of the archive that lacks the last leases: how many records are lost is told and has to be accepted; the
    lost lease's token is dead, although nobody in the restored log knows of it, and its position is given out again.
    The archive that has what was lost answers nothing any more; moved away, it is made anew.
    """
    data = place.data
    with running_up(data):
        first, second, third, *_ = free_devices(data)
        kept = grant(data, first, "vm one")
        place.wait_for_archive()
    shutil.copytree(place.archive(), place.archive("older"))
    with running_up(data):
        lost = grant(data, second, "vm two")
        turns(data, third, 8)
        place.wait_for_archive()
        before = len(place.records())
    place.wipe()
    older = str(place.archive("older"))
    refused = leasehold(data, "restore-ledger", older)
    assert refused.code == 2, refused.out
    assert "records behind record" in refused.err
    assert "--accept-loss" in refused.err
    done = leasehold(data, "restore-ledger", older, "--accept-loss", "--json")
    assert done.code == 0, done.err
    assert "records behind record" in done.object["lost"]
    with running_up(data):
        told = leasehold(data, "owners")
        assert (told.code, told.out) == (4, "")
        assert "restored from less than" in told.err
        # As it says; nothing has to be started for that.
        place.archive().rename(place.archive("further"))
        place.wait_for_archive()
        assert [row["lease"] for row in leasehold(data, "owners", "--json").objects] == [kept["lease"]]
        leases = {row["lease"]: row for row in leasehold(data, "leases", "--json").objects}
        assert list(leases) == [kept["lease"]]
        check_old_tokens(place.records(), int(lost["token"]))
        new = grant(data, second, "vm nine")
        stale = leasehold(data, "release", lost["lease"], "--token", str(lost["token"]), "--json")
        assert stale.code == 3
        assert stale.object["code"] in ("token_stale", "lease_unknown")
        assert new["token"] > token_of(1, 0)
        # Up to where the lost positions are given out again.
        turns(data, third, before)
        assert len(place.records()) > before
        check_old_tokens(place.records(), int(lost["token"]))
        place.wait_for_archive()
    verified = leasehold(data, "verify")
    assert verified.code == 0, verified.err


def test_killed_at_any_time(place: Place) -> None:
    """`restore-ledger` is killed (SIGKILL) again and again, wherever it is; in the end one run finishes it, and nobody
    could begin to work on what was half restored.
    """
    data, seed = place.data, random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    with running_up(data):
        kept = grant(data, free_devices(data)[0], "vm one")
        place.wait_for_archive()
        records = len(place.records())
    place.wipe()
    command = [sys.executable, "-m", "leasehold", "restore-ledger", str(place.archive()), "--data", str(data)]
    for _ in range(8):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(rng.uniform(0.4, 1.2))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            if (data / NOTE_FILE).exists():
                refused = leasehold(data, "up", "--data", str(data))
                assert refused.code == 2, refused.err
                assert "was not finished" in refused.err
        else:
            break
    last = leasehold(data, "restore-ledger", str(place.archive()), "--data", str(data))
    assert last.code == 0 or "holds" in last.err, last.err
    assert not (data / NOTE_FILE).exists()
    with running_up(data):
        found = place.records()
        eras = [record.era for record in found]
        assert eras == sorted(eras)
        assert eras.count(0) >= records
        assert sum(isinstance(each, event_types.LedgerRestored) for each in events_of(found)) == 1
        (lease,) = leasehold(data, "leases", "--json").objects
        assert lease["lease"] == kept["lease"]
