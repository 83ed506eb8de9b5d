"""Whatever happens to an archive's files is found, and the record or the segment is named."""

import asyncio
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from leasehold.events import codec
from leasehold.events.event_types import LeaseGranted
from leasehold.events.inputs import Asked
from leasehold.events.record import RULES_VERSION, chain_hash
from leasehold.services.archive import segments
from leasehold.services.ledger.memory import MemoryLedger, MemoryLog
from leasehold.services.verifying.archives import ArchiveFiles
from leasehold.services.verifying.checks import Report, check_ledger
from tests.support import damage
from tests.support.running import leasehold
from tests.verify import archived
from tests.verify.archived import body_at, forge, forging, holding, put

IN_THE_MIDDLE = 30


class Kept(NamedTuple):
    """An archive, and what it was when it had fewer records."""

    directory: Path
    older: Path
    bodies: list[bytes]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """An archive of many segments, and a copy of it that was made long before."""
    folder = tmp_path_factory.mktemp("kept")
    bodies = archived.some_log().bodies
    directory = asyncio.run(archived.archived(bodies[:-20], folder / "archive"))
    older = archived.copy_of(directory, folder / "older")
    asyncio.run(archived.archived(bodies, directory))
    assert len(segments.segments_in(directory)) > 5
    return Kept(directory, older, bodies)


async def test_an_archive_as_it_was_written(kept: Kept) -> None:
    """Nothing is found, every record was looked at, and the note beside the segments is a witness."""
    report = await archived.checked(kept.directory)
    assert (report.problem, report.records) == ("", len(kept.bodies))
    assert report.leases == 20
    assert report.folded_only == 0
    assert report.segments == len(segments.segments_in(kept.directory))
    assert report.witnesses == ("head.json",)


async def test_a_segment_that_was_begun_and_not_written_to(kept: Kept, tmp_path: Path) -> None:
    """Who is killed behind the making of a segment leaves it without records, which is no damage."""
    directory = archived.copy_of(kept.directory, tmp_path / "archive")
    last = segments.segments_in(directory)[-1]
    records = len(kept.bodies) - last.first + 1
    with forging(last) as database:
        database.execute("DELETE FROM records")
    report = await archived.checked(directory)
    assert report.sequence == last.first, "the note knows that there was more"
    (directory / "head.json").unlink()
    report = await archived.checked(directory)
    assert (report.problem, report.records) == ("", len(kept.bodies) - records)


def test_where_no_archive_is(tmp_path: Path) -> None:
    """There is nothing to look at: neither good nor bad is said of it, by none of the commands."""
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "nowhere", tmp_path / "file"):
        for command in (("verify", "--archive"), ("replay",)):
            done = leasehold(None, *command, str(place))
            assert (done.code, done.out) == (4, ""), done.err
            assert str(place) in done.err


# --- damage -----------------------------------------------------------------------------------------------------------


def _byte_flipped(directory: Path, _older: Path) -> int:
    archived.flip_in_record(directory, IN_THE_MIDDLE)
    return IN_THE_MIDDLE


def _byte_flipped_in_the_last(directory: Path, _older: Path) -> int:
    last = archived.rows_of(directory)[-1][0]
    archived.flip_in_record(directory, last)
    return int(last)


def _removed(directory: Path, _older: Path) -> int:
    forge(directory, IN_THE_MIDDLE, "DELETE FROM records WHERE sequence = ?", IN_THE_MIDDLE)
    return IN_THE_MIDDLE


def _removed_and_closed_up(directory: Path, _older: Path) -> int:
    with forging(holding(directory, IN_THE_MIDDLE)) as database:
        database.execute("DELETE FROM records WHERE sequence = ?", [IN_THE_MIDDLE])
        for (sequence,) in database.execute(
            "SELECT sequence FROM records WHERE sequence > ? ORDER BY sequence", [IN_THE_MIDDLE]
        ).fetchall():
            database.execute("UPDATE records SET sequence = ? WHERE sequence = ?", [sequence - 1, sequence])
    # Either the one before it was changed, or one is missing: what follows cannot tell.
    return IN_THE_MIDDLE - 1


def _first_removed(directory: Path, _older: Path) -> int:
    forge(directory, 1, "DELETE FROM records WHERE sequence = 1")
    return 1


def _last_of_a_segment_removed(directory: Path, _older: Path) -> int:
    first = segments.segments_in(directory)[2].first
    forge(directory, first - 1, "DELETE FROM records WHERE sequence = ?", first - 1)
    return first - 1


def _inserted(directory: Path, _older: Path) -> int:
    body = body_at(directory, IN_THE_MIDDLE)
    with forging(holding(directory, IN_THE_MIDDLE)) as database:
        later = database.execute(
            "SELECT sequence FROM records WHERE sequence >= ? ORDER BY sequence DESC", [IN_THE_MIDDLE]
        ).fetchall()
        for (sequence,) in later:
            database.execute("UPDATE records SET sequence = ? WHERE sequence = ?", [sequence + 1, sequence])
        database.execute(
            "INSERT INTO records SELECT ?, decided_at_ns, chain, ? FROM records WHERE sequence = ?",
            [IN_THE_MIDDLE, body, IN_THE_MIDDLE + 1],
        )
    # The same record stands there twice; the first one is where it was.
    return IN_THE_MIDDLE + 1


def _another_inserted(directory: Path, older: Path) -> int:
    _inserted(directory, older)
    put(directory, IN_THE_MIDDLE, body_at(directory, IN_THE_MIDDLE).replace(b'"writer":"alloc"}', b'"writer":"allod"}'))
    return IN_THE_MIDDLE


def _changed_with_its_hash(directory: Path, _older: Path) -> int:
    put(directory, IN_THE_MIDDLE, body_at(directory, IN_THE_MIDDLE).replace(b'"writer":"alloc"}', b'"writer":"allod"}'))
    return IN_THE_MIDDLE


def _inserted_far_away(directory: Path, _older: Path) -> int:
    segment = segments.segments_in(directory)[1]
    with forging(segment) as database:
        database.execute("INSERT INTO records SELECT -7, decided_at_ns, chain, body FROM records LIMIT 1")
    return segment.first


def _inserted_far_behind(directory: Path, _older: Path) -> int:
    segment = segments.segments_in(directory)[1]
    with forging(segment) as database:
        database.execute("INSERT INTO records SELECT 1000000, decided_at_ns, chain, body FROM records LIMIT 1")
    return segment.first


def _note_of_another_era(directory: Path, _older: Path) -> int:
    note = directory / "head.json"
    note.write_text(note.read_text().replace('"era":0', '"era":62'))
    return int(archived.rows_of(directory)[-1][0])


def _swapped(directory: Path, _older: Path) -> int:
    one, other = body_at(directory, IN_THE_MIDDLE), body_at(directory, IN_THE_MIDDLE + 1)
    put(directory, IN_THE_MIDDLE, other)
    put(directory, IN_THE_MIDDLE + 1, one)
    return IN_THE_MIDDLE


def _tail_cut(directory: Path, _older: Path) -> int:
    last = archived.rows_of(directory)[-1][0]
    forge(directory, last, "DELETE FROM records WHERE sequence > ?", last - 2)
    return int(last) - 1


def _file_cut(directory: Path, _older: Path) -> int:
    segment = holding(directory, IN_THE_MIDDLE)
    segment.path.chmod(0o600)
    damage.cut(segment.path, segment.path.stat().st_size // 2)
    return -segments.segments_in(directory)[3].first


def _file_emptied(directory: Path, _older: Path) -> int:
    segment = holding(directory, IN_THE_MIDDLE)
    segment.path.chmod(0o600)
    segment.path.write_bytes(b"")
    return segment.first


def _file_gone(directory: Path, _older: Path) -> int:
    segment = holding(directory, IN_THE_MIDDLE)
    segment.path.unlink()
    return segment.first


def _first_file_gone(directory: Path, _older: Path) -> int:
    segments.segments_in(directory)[0].path.unlink()
    return 1


def _last_file_gone(directory: Path, _older: Path) -> int:
    segment = segments.segments_in(directory)[-1]
    segment.path.unlink()
    return segment.first


def _all_files_gone(directory: Path, _older: Path) -> int:
    for segment in segments.segments_in(directory):
        segment.path.unlink()
    return 1


def _replaced_by_an_older_one(directory: Path, older: Path) -> int:
    """The one which was the last one then, and had fewer records."""
    segment = segments.segments_in(older)[-1]
    (directory / segment.name).unlink()
    shutil.copy(segment.path, directory / segment.name)
    return len(archived.rows_of(older)) + 1


def _all_replaced_by_older_ones(directory: Path, older: Path) -> int:
    note = (directory / "head.json").read_bytes()
    shutil.rmtree(directory)
    shutil.copytree(older, directory)
    (directory / "head.json").write_bytes(note)
    return len(archived.rows_of(older)) + 1


def _renamed(directory: Path, _older: Path) -> int:
    segment = segments.segments_in(directory)[3]
    segment.path.rename(segment.path.with_name(f"{segment.first:020}-1999-01-01.sqlite"))
    return segment.first


def _trigger_gone(directory: Path, _older: Path) -> int:
    segment = segments.segments_in(directory)[2]
    segment.path.chmod(0o600)
    with forging(segment) as database:
        database.execute("CREATE TRIGGER more AFTER INSERT ON records BEGIN SELECT 1; END")
    return segment.first


def _time_changed(directory: Path, _older: Path) -> int:
    sql = "UPDATE records SET decided_at_ns = decided_at_ns - 3600000000000 WHERE sequence = ?"
    forge(directory, IN_THE_MIDDLE, sql, IN_THE_MIDDLE)
    return IN_THE_MIDDLE


def _hash_changed(directory: Path, _older: Path) -> int:
    sql = "UPDATE records SET chain = zeroblob(32) WHERE sequence = ?"
    forge(directory, IN_THE_MIDDLE, sql, IN_THE_MIDDLE)
    return IN_THE_MIDDLE


def _link_changed(directory: Path, _older: Path) -> int:
    segment = segments.segments_in(directory)[2]
    with forging(segment) as database:
        database.execute("UPDATE meta SET follows = zeroblob(32)")
    return segment.first


def _other_ledger(directory: Path, _older: Path) -> int:
    segment = segments.segments_in(directory)[2]
    with forging(segment) as database:
        database.execute("UPDATE meta SET ledger_id = 'another'")
    return segment.first


def _no_record(directory: Path, _older: Path) -> int:
    put(directory, IN_THE_MIDDLE, b"\xff\x00 not a record")
    return IN_THE_MIDDLE


def _no_database(directory: Path, _older: Path) -> int:
    segment = segments.segments_in(directory)[3]
    segment.path.chmod(0o600)
    segment.path.write_bytes(b"garbage " * 4_096)
    return segment.first


def _index_of_times_damaged(directory: Path, _older: Path) -> int:
    """A row of the index says another time, and nothing else does."""
    segment = segments.segments_in(directory)[2]
    with forging(segment) as database:
        database.execute("PRAGMA writable_schema = ON")
        (root,) = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 'records_by_time'").fetchone()
        (size,) = database.execute("PRAGMA page_size").fetchone()
    # The last byte of the page is in its first row: the sequence that it points to.
    archived.flip(segment.path, root * size - 1)
    return segment.first


def _forged_to_the_end(directory: Path, _older: Path) -> int:
    """All records from one on with their links made anew, and the segments' too: flawless but for the note."""
    rows = archived.rows_of(directory)
    bodies = [row[2] for row in rows]
    bodies[IN_THE_MIDDLE - 1] = bodies[IN_THE_MIDDLE - 1].replace(b'"writer":"alloc"}', b'"writer":"allod"}')
    bodies = damage.chained(bodies)
    for sequence, body in enumerate(bodies, 1):
        if body != rows[sequence - 1][2]:
            put(directory, sequence, body)
    from_here = False
    for segment in segments.segments_in(directory):
        if from_here:
            with forging(segment) as database:
                follows = bytes.fromhex(chain_hash(bodies[segment.first - 2]))
                database.execute("UPDATE meta SET follows = ?", [follows])
        from_here = from_here or segment == holding(directory, IN_THE_MIDDLE)
    return len(bodies)


DAMAGES = [
    *(_byte_flipped, _byte_flipped_in_the_last, _removed, _removed_and_closed_up, _first_removed),
    *(_last_of_a_segment_removed, _inserted, _inserted_far_away, _another_inserted, _changed_with_its_hash),
    *(_inserted_far_behind, _note_of_another_era, _swapped, _tail_cut, _file_cut, _file_emptied),
    *(_file_gone, _first_file_gone, _last_file_gone, _all_files_gone, _replaced_by_an_older_one),
    *(_all_replaced_by_older_ones, _renamed, _trigger_gone, _time_changed, _hash_changed, _link_changed),
    *(_other_ledger, _no_record, _no_database, _index_of_times_damaged, _forged_to_the_end),
]
"""Negative: somewhere up to there."""
TOLD_TO_PEOPLE = (_byte_flipped, _removed, _inserted, _swapped, _tail_cut, _replaced_by_an_older_one, _no_database)


@pytest.mark.parametrize("do_damage", DAMAGES, ids=lambda each: each.__name__.strip("_"))
async def test_damage_is_found(kept: Kept, tmp_path: Path, do_damage: archived.Damage) -> None:
    """The first bad record is named, and where it is about a file, the segment."""
    directory = archived.copy_of(kept.directory, tmp_path / "archive")
    first = do_damage(directory, kept.older)
    report = await archived.checked(directory)
    print(report.problem)
    assert report.problem
    if first > 0:
        assert report.sequence == first, report.problem
    assert 1 <= report.sequence <= abs(first)
    assert report.records < report.sequence
    assert report.problem.startswith(f"record {report.sequence}: ")
    assert "segment " in report.problem or ".sqlite" in report.problem or "head.json" in report.problem


@pytest.mark.parametrize("do_damage", TOLD_TO_PEOPLE, ids=lambda each: each.__name__.strip("_"))
async def test_the_command_says_so(kept: Kept, tmp_path: Path, do_damage: archived.Damage) -> None:
    """`verify --archive` needs no bus, names the record, and exits 1; of what is as it was it says so, and exits 0."""
    directory = archived.copy_of(kept.directory, tmp_path / "archive")
    first = do_damage(directory, kept.older)
    done = leasehold(None, "verify", "--archive", str(directory), NATS_SERVER="/nowhere")
    assert (done.code, done.out) == (1, ""), done.err
    assert done.err.startswith(f"NOT VERIFIED: record {first}: "), done.err
    assert "Traceback" not in done.err


async def test_the_command_on_a_flawless_archive(kept: Kept, tmp_path: Path) -> None:
    """It ends with what was found, exits 0, and has written nothing; a place without an archive is no success."""
    before = archived.contents(kept.directory)
    done = leasehold(None, "verify", "--archive", str(kept.directory), NATS_SERVER="/nowhere")
    assert done.code == 0, done.err
    assert done.out.startswith(f"verified: {len(kept.bodies)} records, ")
    assert archived.contents(kept.directory) == before
    for place in (tmp_path, tmp_path / "nowhere"):
        done = leasehold(None, "verify", "--archive", str(place))
        assert done.code in {1, 4}, done.err
        assert str(place) in done.err
        assert "Traceback" not in done.err


async def test_every_byte_counts_or_changes_nothing(kept: Kept, tmp_path: Path) -> None:
    """Whichever byte of a segment is another: it is found, or all records are read as they were."""
    directory = archived.copy_of(kept.directory, tmp_path / "archive")
    path = segments.segments_in(directory)[2].path
    good = path.read_bytes()
    rows = archived.rows_of(directory)
    found = 0
    step = max(1, len(good) // 160) | 1
    for at in range(3, len(good), step):
        archived.flip(path, at)
        report = await archived.checked(directory)
        if report.problem:
            found += 1
            assert report.problem.startswith(f"record {report.sequence}: "), report.problem
        else:
            assert archived.rows_of(directory) == rows, f"byte {at} changes what is read, and is not found"
        path.chmod(0o600)
        path.write_bytes(good)
    print(f"{found} of {len(range(3, len(good), step))} were found; the others lie where nothing is")
    assert found > 20


# --- beside the log ---------------------------------------------------------------------------------------------------


async def _compared(bodies: list[bytes], directory: Path) -> Report:
    log = MemoryLog()
    for body in bodies:
        log.append(body)
    return await check_ledger(MemoryLedger(log), [], lambda _done, _all: None, await ArchiveFiles.open(directory))


async def test_beside_the_log(kept: Kept) -> None:
    """All of the archive is compared, also where the log has gone on meanwhile."""
    report = await _compared(kept.bodies, kept.directory)
    assert (report.problem, report.records, report.archived) == ("", len(kept.bodies), len(kept.bodies))
    report = await _compared(kept.bodies, kept.older)
    assert (report.problem, report.archived) == ("", len(kept.bodies) - 20)


async def test_a_log_that_is_shorter_than_its_archive(kept: Kept) -> None:
    """What is missing at the end of the log is named, and that the archive goes further."""
    report = await _compared(kept.bodies[:-3], kept.directory)
    assert report.sequence == len(kept.bodies) - 2
    assert (
        f"missing: the log ends at {len(kept.bodies) - 3}, but the archive goes to {len(kept.bodies)}" in report.problem
    )


async def test_a_damaged_log_beside_a_good_archive(kept: Kept) -> None:
    """The log's record is named, and that the archive has it."""
    bodies = list(kept.bodies)
    bodies[IN_THE_MIDDLE - 1] = bodies[IN_THE_MIDDLE - 1][:-1] + b" }"
    report = await _compared(bodies, kept.directory)
    assert report.sequence == IN_THE_MIDDLE
    assert f"has record {IN_THE_MIDDLE}" in report.help


async def test_a_damaged_archive_beside_a_good_log(kept: Kept, tmp_path: Path) -> None:
    """The archive's record is named, and that it is the archive's; all of the log was gone through."""
    directory = archived.copy_of(kept.directory, tmp_path / "archive")
    archived.flip_in_record(directory, IN_THE_MIDDLE)
    report = await _compared(kept.bodies, directory)
    assert report.problem.startswith(f"the archive in {directory}: record {IN_THE_MIDDLE}: ")
    assert (report.sequence, report.archived) == (IN_THE_MIDDLE, IN_THE_MIDDLE - 1)


async def test_both_flawless_and_not_the_same(kept: Kept, tmp_path: Path) -> None:
    """An archive that was made anew from another log, with all links and its note, is still not the log's."""
    bodies = list(kept.bodies)
    bodies[IN_THE_MIDDLE - 1] = bodies[IN_THE_MIDDLE - 1].replace(b'"writer":"alloc"}', b'"writer":"allod"}')
    forged = await archived.archived(damage.chained(bodies), tmp_path / "forged")
    assert not (await archived.checked(forged)).problem
    report = await _compared(kept.bodies, forged)
    assert report.sequence == IN_THE_MIDDLE
    assert "another one than in the log" in report.problem


async def test_what_was_decided_by_other_rules_is_still_audited(tmp_path: Path) -> None:
    """Records of rules that this build does not carry are not decided again, but two owners at a time are found."""
    ledger = archived.some_log(2)
    ledger.granted("01:00.0")
    ledger.release(ledger.granted("0a:00.0"))
    ledger.granted("0a:00.0")
    bodies = list(ledger.bodies)
    at = len(bodies) - 1
    text = bodies[at].replace(b"h1/pci/0000:0a:00.0", b"h1/pci/0000:01:00.0")
    text = text.replace(f'"rules_version":{RULES_VERSION}'.encode(), b'"rules_version":99')
    (step,) = codec.decode_record(text, at + 1).steps
    assert isinstance(step.input, Asked)
    assert isinstance(step.events[0], LeaseGranted)
    text = text.replace(step.events[0].request.body_hash.encode(), codec.body_hash(step.input.request).encode())
    bodies[at] = text
    report = await archived.checked(await archived.archived(bodies, tmp_path / "archive"))
    assert report.sequence == at + 1
    assert "is granted to vm" in report.problem
    assert "it is held by vm" in report.problem
