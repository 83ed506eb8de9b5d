"""Whatever happens to a ledger at rest is found: `verify` names the record, and `up` does not go on."""

import asyncio
import os
import re
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest

from leasehold.events import limits
from leasehold.events.position import sequence_of
from leasehold.events.subjects import LEDGER_STREAM
from tests.support import damage
from tests.support.running import HOST, Done, RunningUp, leasehold, running_up
from tests.support.servers import wait_until_gone

NOTED_S_MAX = limits.HEAD_NOTE_MS / 1_000 + 1.0
"""The promised time, and what a busy machine adds to it."""


class Kept(NamedTuple):
    """What runs of `up` have left: the whole, an older copy of it, and another ledger."""

    data: Path
    older: Path
    other: Path
    records: int
    older_records: int


def _free_device(data: Path) -> str:
    rows = leasehold(data, "devices", "--json").objects
    return str(next(row["name"] for row in rows if row["state"] == "free"))


def _lease_and_release(data: Path, name: str, times: int) -> int:
    """Grants, refusals and releases; the last position."""
    position = 0
    for number in range(times):
        granted = leasehold(data, "lease", name, "--for", f"vm {number}", "--json")
        assert granted.code == 0, granted.out
        lease = granted.object
        assert leasehold(data, "lease", name, "--for", f"late {number}").code == 3
        released = leasehold(data, "release", lease["lease"], "--token", str(lease["token"]), "--json")
        position = int(released.object["position"])
    return position


def _kill(up: RunningUp) -> None:
    assert all(wait_until_gone(pid) for pid in up.kill())


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """A ledger that was killed once and stopped once; the older copy is of the time between."""
    folder = tmp_path_factory.mktemp("kept")
    data = folder / "data"
    up = RunningUp(data)
    name = _free_device(data)
    _lease_and_release(data, name, 2)
    _kill(up)
    older = damage.copy_of(data, folder / "older" / "data")
    with running_up(data):
        _lease_and_release(data, name, 3)
    other = folder / "other" / "data"
    with running_up(other):
        pass
    counts = [len(damage.stored_in(damage.ledger_block(each))) for each in (data, older)]
    assert counts[0] > counts[1] > 4
    return Kept(data, older, other, *counts)


def test_a_clean_stop_notes_the_very_last_record(kept: Kept) -> None:
    """After Ctrl-C the allocator's note is of the last record of the log, and `verify` has both stores as witnesses."""
    assert damage.noted_head(kept.data / "allocator.sqlite") == kept.records
    verified = leasehold(kept.data, "verify", "--json")
    assert (verified.code, verified.object["problem"], verified.object["records"]) == (0, "", kept.records)
    assert {"allocator.sqlite", "query.sqlite"} <= set(verified.object["witnesses"])


def test_a_copy_verifies_while_the_original_runs(kept: Kept, tmp_path: Path) -> None:
    """A copy is checked by itself, although its connection file names the running original."""
    original = damage.copy_of(kept.data, tmp_path / "original" / "data")
    with running_up(original):
        copy = damage.copy_of(kept.data, tmp_path / "copy" / "data")
        shutil.copy(original / "connection.json", copy)
        verified = leasehold(copy, "verify", "--json")
        assert (verified.code, verified.object["records"]) == (0, kept.records), verified.err
        damage.flip(damage.ledger_block(copy), _middle(damage.stored_in(damage.ledger_block(copy))[2]))
        assert leasehold(copy, "verify").code == 1
        assert leasehold(original, "verify").code == 0


def test_how_soon_a_grant_is_noted(tmp_path: Path) -> None:
    """Half a second after an answer, give or take, a witness on disk knows its record, though nothing follows it."""
    data = tmp_path / "up" / "data"
    up = RunningUp(data)
    try:
        name = _free_device(data)
        for _ in range(3):
            sequence = sequence_of(_lease_and_release(data, name, 1))
            answered_s = time.monotonic()
            while max(damage.noted_head(data / store) for store in damage.STORES) < sequence:
                assert time.monotonic() - answered_s < NOTED_S_MAX, f"record {sequence} is not noted"
            print(f"record {sequence} noted within {time.monotonic() - answered_s:.3f} s of its answer being read")
    finally:
        _kill(up)
    # What was answered and noted, and is then cut off with the server's own index, is missed.
    (damage.ledger_block(data).parent / "index.db").unlink()
    last = damage.stored_in(damage.ledger_block(data))[-1]
    damage.cut(damage.ledger_block(data), damage.ledger_block(data).stat().st_size - last.start)
    verified = leasehold(data, "verify", "--json")
    assert (verified.code, verified.object["sequence"]) == (1, last.sequence), verified.out


# --- damage ---------------------------------------------------------------------------------------------------------


def _middle(stored: damage.Stored) -> int:
    return (stored.body + stored.end) // 2


def _record(data: Path, sequence: int) -> damage.Stored:
    return damage.stored_in(damage.ledger_block(data))[sequence - 1]


def _rewritten(data: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    asyncio.run(damage.rewrite_log(data, change))


def _in_the_body(kept: Kept, data: Path) -> int:
    sequence = kept.records // 2
    damage.flip(damage.ledger_block(data), _middle(_record(data, sequence)))
    return sequence


def _in_the_first(_kept: Kept, data: Path) -> int:
    damage.flip(damage.ledger_block(data), _middle(_record(data, 1)))
    return 1


def _in_the_last(kept: Kept, data: Path) -> int:
    damage.flip(damage.ledger_block(data), _middle(_record(data, kept.records)))
    return kept.records


def _in_a_length(kept: Kept, data: Path) -> int:
    damage.flip(damage.ledger_block(data), _record(data, kept.records // 2).start)
    return kept.records // 2


def _in_a_sequence(kept: Kept, data: Path) -> int:
    damage.flip(damage.ledger_block(data), _record(data, kept.records // 2).start + 4)
    return kept.records // 2


def _in_a_checksum(kept: Kept, data: Path) -> int:
    damage.flip(damage.ledger_block(data), _record(data, kept.records // 2).end)
    return kept.records // 2


def _in_the_body_without_index(kept: Kept, data: Path) -> int:
    # The server then looks at everything when it starts, and throws away what is behind the damage without a word.
    (damage.ledger_block(data).parent / "index.db").unlink()
    return _in_the_body(kept, data)


def _a_few_bytes_cut(kept: Kept, data: Path) -> int:
    damage.cut(damage.ledger_block(data), 5)
    return kept.records


def _half_cut(_kept: Kept, data: Path) -> int:
    block = damage.ledger_block(data)
    stored = damage.stored_in(block)
    damage.cut(block, block.stat().st_size // 2)
    size = block.stat().st_size
    return next(each.sequence for each in stored if each.end > size)


def _block_gone(_kept: Kept, data: Path) -> int:
    damage.ledger_block(data).unlink()
    return 1


def _older_log(kept: Kept, data: Path) -> int:
    shutil.rmtree(data / "jetstream")
    shutil.copytree(kept.older / "jetstream", data / "jetstream")
    return kept.older_records + 1


def _other_log(kept: Kept, data: Path) -> int:
    shutil.rmtree(data / "jetstream")
    shutil.copytree(kept.other / "jetstream", data / "jetstream")
    return 1


def _no_log(_kept: Kept, data: Path) -> int:
    shutil.rmtree(data / "jetstream")
    return 1


def _no_stream(_kept: Kept, data: Path) -> int:
    (data / damage.STREAMS / LEDGER_STREAM / "meta.inf").unlink()
    return 1


def _no_sum(_kept: Kept, data: Path) -> int:
    (data / damage.STREAMS / LEDGER_STREAM / "meta.sum").unlink()
    return 1


def _forged(data: Path, change: Callable[[bytes], bytes], *, find: bytes) -> int:
    """Change the first record that holds `find`, and nothing else; its place."""
    places: list[int] = []

    def rewrite(bodies: list[bytes]) -> list[bytes]:
        places.append(next(index for index, body in enumerate(bodies) if find in body))
        return [change(body) if index == places[0] else body for index, body in enumerate(bodies)]

    _rewritten(data, rewrite)
    return places[0] + 1


def _forged_holder(_kept: Kept, data: Path) -> int:
    return _forged(data, lambda body: body.replace(b'"vm 1"', b'"vm 9"'), find=b'"vm 1"')


def _forged_device(_kept: Kept, data: Path) -> int:
    # The event is of a device that nobody knows: it cannot even be folded.
    changed = re.compile(rb'("devices":\["testhost/pci/)[0-9a-f]{4}')
    return _forged(data, lambda body: changed.sub(rb"\1ffff", body), find=b"lease_granted")


def _forged_writer(_kept: Kept, data: Path) -> int:
    # No decision hangs on it: only the record behind tells.
    return _forged(data, lambda body: re.sub(rb'"writer":"[^"]+"\}$', b'"writer":"me"}', body), find=b"lease_released")


def _forged_to_the_end(kept: Kept, data: Path) -> int:
    def rewrite(bodies: list[bytes]) -> list[bytes]:
        bodies[3] = re.sub(rb'"writer":"[^"]+"\}$', b'"writer":"me"}', bodies[3])
        return damage.chained(bodies)

    _rewritten(data, rewrite)
    return -kept.records


def _garbage_inside(_kept: Kept, data: Path) -> int:
    _rewritten(data, lambda bodies: [*bodies[:4], b"\xff\x00 not a record", *bodies[5:]])
    return 5


def _one_left_out(_kept: Kept, data: Path) -> int:
    # Either the fourth was changed or the fifth is missing: what follows cannot tell.
    _rewritten(data, lambda bodies: [*bodies[:4], *bodies[5:]])
    return 4


def _two_swapped(_kept: Kept, data: Path) -> int:
    _rewritten(data, lambda bodies: [*bodies[:4], bodies[5], bodies[4], *bodies[6:]])
    return 5


def _one_added(kept: Kept, data: Path) -> int:
    _rewritten(data, lambda bodies: [*bodies, bodies[-1] + b" "])
    return kept.records + 1


def _last_ones_gone(kept: Kept, data: Path) -> int:
    _rewritten(data, lambda bodies: bodies[:-3])
    return kept.records - 2


DAMAGES: list[Callable[[Kept, Path], int]] = [
    *(_in_the_body, _in_the_first, _in_the_last, _in_a_length, _in_a_sequence, _in_a_checksum),
    *(_in_the_body_without_index, _a_few_bytes_cut, _half_cut, _block_gone, _older_log, _other_log, _no_log),
    *(_no_stream, _no_sum, _forged_holder, _forged_device, _forged_writer, _forged_to_the_end),
    *(_garbage_inside, _one_left_out, _two_swapped, _one_added, _last_ones_gone),
]
"""Each damages a copy and says which record is the first bad one (negative: somewhere up to there)."""


def _is_plain(done: Done) -> bool:
    return "Traceback" not in done.out + done.err


@pytest.mark.parametrize("do_damage", DAMAGES, ids=lambda each: each.__name__.strip("_"))
def test_damage_is_found(kept: Kept, tmp_path: Path, do_damage: Callable[[Kept, Path], int]) -> None:
    """`verify` exits 1 and names the first bad record, for people and programs; `up` stops and names a record."""
    data = damage.copy_of(kept.data, tmp_path / "data")
    first = do_damage(kept, data)
    programs = leasehold(data, "verify", "--json")
    people = leasehold(data, "verify")
    assert (programs.code, people.code) == (1, 1), f"{people.out}{people.err}"
    assert programs.object["problem"]
    assert programs.object["sequence"] == abs(first), programs.object["problem"]
    assert programs.object["records"] <= abs(first) - 1
    assert people.err.startswith("NOT VERIFIED: ")
    assert f"record {abs(first)}: " in people.err or "no stream LEDGER" in people.err
    assert not people.out
    assert _is_plain(people), people.err
    up = leasehold(data, "up", "--host", HOST)
    assert up.code == 1, f"{up.out}{up.err}"
    assert "leasehold: " in up.err
    assert re.search(r"record \d+: ", up.err) or "no stream LEDGER" in up.err
    assert _is_plain(up), up.err


@pytest.mark.parametrize("store", damage.STORES)
def test_a_damaged_snapshot_is_found_and_built_anew(kept: Kept, tmp_path: Path, store: str) -> None:
    """`verify` names the snapshot; nothing is lost with it, so `up` folds the log again, and all is well afterwards."""
    data = damage.copy_of(kept.data, tmp_path / "data")
    before = damage.noted_head(data / store)
    damage.flip_in_snapshot(data / store)
    people = leasehold(data, "verify")
    assert people.code == 1
    assert f"NOT VERIFIED: {store}: the snapshot at record {before} is not what was written" in people.err
    assert leasehold(data, "verify", "--json").object["problem"]
    with running_up(data):
        past = leasehold(data, "leases", "--all", "--json").objects
        assert [row["holder"] for row in past] == ["vm 0", "vm 1", "vm 0", "vm 1", "vm 2"]
        assert "is not what was written" in (data / store.replace("sqlite", "log")).read_text()
    assert leasehold(data, "verify").code == 0


def test_a_damaged_snapshot_hides_no_damaged_log(kept: Kept, tmp_path: Path) -> None:
    """With both damaged, `verify` tells of the log, and the note beside the snapshot is still a witness."""
    data = damage.copy_of(kept.data, tmp_path / "data")
    for store in damage.STORES:
        damage.flip_in_snapshot(data / store)
    first = _last_ones_gone(kept, data)
    assert leasehold(data, "verify", "--json").object["sequence"] == first


def test_a_store_that_is_no_database_any_more(kept: Kept, tmp_path: Path) -> None:
    """A store of garbage is named by `verify` and by `up`, in one line."""
    data = damage.copy_of(kept.data, tmp_path / "data")
    (data / "query.sqlite").write_bytes(b"garbage " * 4096)
    people = leasehold(data, "verify")
    assert people.code == 1
    assert "NOT VERIFIED: query.sqlite" in people.err
    up = leasehold(data, "up", "--host", HOST)
    assert up.code == 1
    assert "query.sqlite" in up.err
    assert _is_plain(up), up.err


def test_an_index_that_is_gone_loses_nothing(kept: Kept, tmp_path: Path) -> None:
    """The server's index of the messages can be made anew from them: all records are there, and `up` goes on."""
    data = damage.copy_of(kept.data, tmp_path / "data")
    (damage.ledger_block(data).parent / "index.db").unlink()
    assert leasehold(data, "verify", "--json").object["records"] == kept.records
    with running_up(data):
        assert leasehold(data, "status", "--json").object["sequence"] >= kept.records


def test_damage_under_a_running_up_stops_it(kept: Kept, tmp_path: Path) -> None:
    """The server is killed and comes back on a log that lost its end: `up` stops and says which record is missing."""
    data = damage.copy_of(kept.data, tmp_path / "data")
    with running_up(data) as up:
        _lease_and_release(data, _free_device(data), 1)
        server = up.children()["nats-server"]
        _stand_still(up)
        try:
            os.kill(server, signal.SIGKILL)
            assert wait_until_gone(server)
            block = damage.ledger_block(data)
            (block.parent / "index.db").unlink(missing_ok=True)
            damage.flip(block, _middle(_record(data, kept.records - 1)))
        finally:
            up.process.send_signal(signal.SIGCONT)
        assert up.process.wait(60) == 1
        up.let_go()
        assert re.search(r"leasehold: .*record \d+", up.text), up.text
        assert "Traceback" not in up.text


def _stand_still(up: RunningUp) -> None:
    up.process.send_signal(signal.SIGSTOP)
    # Told is not done: what it would still do must not get in between.
    os.waitpid(up.process.pid, os.WUNTRACED)


# --- the archive beside it, and deciding again ------------------------------------------------------------------------


def _archived(data: Path) -> int:
    """How many records the archive of a data directory has."""
    return int(leasehold(None, "verify", "--archive", str(data / "archive"), "--json").object["records"])


def test_the_archive_is_compared(kept: Kept, tmp_path: Path) -> None:
    """Record by record with the log, at rest and while both grow; what is wrong with it is named as the archive's."""
    data = damage.copy_of(kept.data, tmp_path / "data")
    archived = _archived(data)
    assert archived > 0
    verified = leasehold(data, "verify", "--json").object
    assert (verified["problem"], verified["records"], verified["archived"]) == ("", kept.records, archived)
    with running_up(data):
        _lease_and_release(data, _free_device(data), 2)
        verified = leasehold(data, "verify", "--json").object
        assert verified["problem"] == ""
        assert verified["records"] > kept.records
        assert verified["archived"] >= archived
        replayed = leasehold(data, "replay", "--ledger", "--json").object
        assert (replayed["problem"], replayed["folded_only"]) == ("", 0)
        assert replayed["records"] >= verified["records"]
    segment = data / "archive" / min(path.name for path in (data / "archive").glob("0*.sqlite"))
    with closing(sqlite3.connect(segment)) as database:
        database.execute("DROP TRIGGER records_are_kept")
        database.execute("DELETE FROM records WHERE sequence = 5")
        database.commit()
    people = leasehold(data, "verify")
    assert people.code == 1
    assert people.err.startswith(f"NOT VERIFIED: the archive in {data / 'archive'}: "), people.err
    assert segment.name in people.err


def test_what_the_archive_still_has(kept: Kept, tmp_path: Path) -> None:
    """Of a damaged log the record is named, and that the archive has it; a log that lost its end is found by it."""
    data = damage.copy_of(kept.data, tmp_path / "data")
    for store in damage.STORES:
        (data / store).unlink()
    archived = _archived(data)
    _rewritten(data, lambda bodies: bodies[: archived - 3])
    people = leasehold(data, "verify")
    assert people.code == 1
    assert f"record {archived - 2}: missing: the log ends at {archived - 3}, but the archive goes to {archived}" in (
        people.err
    )
    damage.flip(damage.ledger_block(data), _middle(_record(data, 5)))
    people = leasehold(data, "verify")
    assert people.code == 1
    assert people.err.startswith("NOT VERIFIED: record 5: "), people.err
    assert "has record 5; it goes to" in people.err


def test_a_ledger_at_rest_is_decided_again(kept: Kept, tmp_path: Path) -> None:
    """`replay --ledger` reads a copy of what nobody uses, and names a decision that does not follow."""
    data = damage.copy_of(kept.data, tmp_path / "data")
    done = leasehold(data, "replay", "--ledger")
    assert done.code == 0, done.err
    assert done.out.startswith(f"replayed: {kept.records} records, ")
    _rewritten(data, lambda bodies: damage.chained([body.replace(b'"vm 1"', b'"vm 9"', 1) for body in bodies]))
    done = leasehold(data, "replay", "--ledger")
    assert done.code == 1
    assert re.match(r"NOT THE SAME: record \d+: step 0, the event at position \d+, ", done.err), done.err
    assert "Traceback" not in done.err


def test_nothing_to_verify(tmp_path: Path) -> None:
    """A place where nothing ever was is neither verified nor made, and that is no success."""
    for data in (tmp_path / "nowhere", Path("/dev/null")):
        done = leasehold(None, "verify", "--data", str(data))
        assert done.code == 4, done.err
        assert _is_plain(done), done.err
    assert not (tmp_path / "nowhere").exists()
