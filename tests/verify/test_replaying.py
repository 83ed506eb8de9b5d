"""Deciding a log again: nothing is found in what was decided so, and what was not is named, without a bus."""

import asyncio
import os
import pty
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from leasehold.events import codec
from leasehold.services.ledger.memory import MemoryLedger, MemoryLog
from leasehold.services.verifying.replaying import Replayed, replay
from tests.projections.test_old_logs import bodies_of
from tests.support import damage
from tests.support.running import Done, leasehold
from tests.verify import archived

_replace = msgspec.structs.replace


class Planted(NamedTuple):
    """A log in which one decision was changed, and all links were made anew behind it."""

    bodies: list[bytes]
    sequence: int


@pytest.fixture(scope="module")
def planted() -> Planted:
    """A lease was granted for longer than it was asked for."""
    bodies = list(archived.some_log().bodies)
    places = [at for at, body in enumerate(bodies, 1) if b'"lease_granted.v' in body]
    sequence = places[len(places) // 2]
    record = codec.decode_record(bodies[sequence - 1], sequence)
    (step,) = record.steps
    longer = _replace(step.events[0], expires_at_ns=step.events[0].expires_at_ns + 1)  # type: ignore[union-attr]
    bodies[sequence - 1] = codec.encode(_replace(record, steps=(_replace(step, events=(longer,)),)))
    return Planted(damage.chained(bodies), sequence)


def _replay(directory: Path, *arguments: str) -> Done:
    return _run("replay", str(directory), *arguments)


def _run(*arguments: str) -> Done:
    """A command that would find no server if it looked for one."""
    return leasehold(None, *arguments, NATS_SERVER="/nowhere")


async def _of_memory(bodies: list[bytes], first: int = 1, last: int = 0) -> Replayed:
    log = MemoryLog()
    for body in bodies:
        log.append(body)
    return await replay(MemoryLedger(log), lambda _done, _all: None, first=first, last=last)


async def test_an_archive_is_decided_again(tmp_path: Path) -> None:
    """All records of an archive are decided again, without a bus; the statement says so, and nothing is written."""
    bodies = archived.some_log().bodies
    directory = await archived.archived(bodies, tmp_path / "archive")
    before = archived.contents(directory)
    done = _replay(directory)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"replayed: {len(bodies)} records, ")
    assert f"decisions {len(bodies)} records decided again, all the same\n" in done.out
    assert "events/s" in done.out
    for_programs = _replay(directory, "--json").object
    assert (for_programs["decided"], for_programs["problem"]) == (len(bodies), "")
    assert archived.contents(directory) == before


async def test_a_planted_decision_is_found(planted: Planted, tmp_path: Path) -> None:
    """In a log whose links are all in order, the event that was not decided so is named, with both and the input."""
    directory = await archived.archived(planted.bodies, tmp_path / "archive")
    done = _replay(directory)
    assert (done.code, done.out) == (1, "")
    position = planted.sequence * 256
    assert done.err.startswith(f"NOT THE SAME: record {planted.sequence}: step 0, the event at position {position}, ")
    assert re.search(r"\n  input +\{.*\"type\":\"lease\.v1\"", done.err), done.err
    assert re.search(r"\n  recorded +\{.*lease_granted", done.err), done.err
    assert re.search(r"\n  decided again +\{.*lease_granted", done.err), done.err
    assert f"{planted.sequence - 1} records before it are as they were decided" in done.err
    found = _replay(directory, "--json")
    assert found.code == 1
    assert found.object["sequence"] == planted.sequence
    assert found.object["difference"]["position"] == position
    assert found.object["records"] == planted.sequence - 1
    verified = _run("verify", "--archive", str(directory))
    assert verified.code == 1
    assert f"record {planted.sequence}: deciding it again gives something else" in verified.err


async def test_a_part_of_a_log(planted: Planted) -> None:
    """What stands before the first record that was asked for is folded only; behind the last one nothing is read."""
    whole = await _of_memory(planted.bodies)
    assert (whole.sequence, whole.records) == (planted.sequence, planted.sequence - 1)
    behind = await _of_memory(planted.bodies, first=planted.sequence + 1)
    assert (behind.problem, behind.records) == ("", len(planted.bodies))
    assert (behind.folded_only, behind.decided) == (planted.sequence, len(planted.bodies) - planted.sequence)
    before = await _of_memory(planted.bodies, last=planted.sequence - 1)
    assert (before.problem, before.records, before.decided) == ("", planted.sequence - 1, planted.sequence - 1)
    only = await _of_memory(planted.bodies, first=planted.sequence, last=planted.sequence)
    assert only.sequence == planted.sequence


async def test_other_bytes_are_found() -> None:
    """A record that says the same in other bytes is not what is decided; nor is the record behind it to blame."""
    bodies = list(archived.some_log(3).bodies)
    bodies[-1] = bodies[-1][:-1] + b" }"
    found = await _of_memory(bodies)
    assert (found.sequence, found.records) == (len(bodies), len(bodies) - 1)
    assert found.difference is not None
    assert found.difference.step == -1


async def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    """Where the records do not follow each other, nothing is decided any more, and the record is named."""
    directory = await archived.archived(archived.some_log().bodies, tmp_path / "archive")
    archived.forge(directory, 30, "DELETE FROM records WHERE sequence = 30")
    done = _replay(directory)
    assert done.code == 1
    assert done.err.startswith("NOT THE SAME: record 30: missing in segment "), done.err


async def test_old_logs(tmp_path: Path) -> None:
    """An archive of a log that an earlier build has written is decided again by the rules of that build."""
    bodies = bodies_of("rules2-scenario")
    done = _replay(await archived.archived(bodies, tmp_path / "archive"), "--json")
    assert done.code == 0, done.err
    assert done.object["decided"] == len(bodies)


async def test_what_cannot_be_replayed(tmp_path: Path) -> None:
    """Bad arguments are named in a line, and so is a place without an archive."""
    directory = await archived.archived(archived.some_log(1).bodies, tmp_path / "data" / "archive")
    cases = (
        ((), 2, "--ledger"),
        ((str(directory), "--ledger"), 2, "--ledger"),
        ((str(directory), "--from", "9999"), 2, "the log has records 1 to"),
        ((str(directory), "--from", "5", "--to", "4"), 2, "5 to 4"),
        ((str(directory), "--from", "0"), 2, "--from"),
        ((str(tmp_path / "nowhere"),), 4, "nowhere"),
        ((str(tmp_path / "data"),), 4, f"{directory} has some"),
    )
    for arguments, code, says in cases:
        done = _run("replay", *arguments)
        assert done.code == code, f"{arguments}: {done.err}"
        assert says in done.err, f"{arguments}: {done.err}"
        assert "Traceback" not in done.err


def test_progress_on_a_terminal(tmp_path: Path) -> None:
    """On a terminal a bar is shown with how far it is; the closing statement stands alone on standard output."""
    bodies = archived.some_log(160).bodies
    directory = asyncio.run(archived.archived(bodies, tmp_path / "archive"))
    leader, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "leasehold", "replay", str(directory)],
        stdout=subprocess.PIPE, stderr=terminal, env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )  # fmt: skip
    os.close(terminal)
    shown = b""
    # The end of a terminal is an error of reading from it.
    with suppress(OSError):
        while piece := os.read(leader, 65_536):
            shown += piece
    os.close(leader)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out.startswith(b"replayed: ")
    assert b"deciding again" in shown
    assert f"/{len(bodies)} records".encode() in re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", shown)
