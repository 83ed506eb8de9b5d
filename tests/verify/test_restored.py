"""A log that was restored from an archive: flawless by itself, and not held against what was read before."""

from pathlib import Path

from leasehold.events import inputs
from leasehold.projections.sequencer import Sequencer
from leasehold.projections.state import State
from leasehold.services.ledger.memory import MemoryLedger, MemoryLog
from leasehold.services.verifying.archives import ArchiveFiles
from leasehold.services.verifying.checks import Report, check_ledger
from leasehold.services.verifying.replaying import replay
from leasehold.services.verifying.witnesses import Witness
from tests.projections.ledger import H1, H2, SECOND, Ledger
from tests.support import damage
from tests.verify import archived

LOST = 6


def _restored(before: Ledger) -> Ledger:
    """All but the last records of a log, the one that raises the era, and leases of then that go on."""
    ledger = Ledger("restorer")
    ledger.bodies = before.bodies[:-LOST]
    ledger.sequencer = Sequencer(State(), cluster="lab", writer="restorer")
    for sequence, body in enumerate(ledger.bodies, 1):
        ledger.sequencer.apply(sequence, body)
    ledger.now_ns = before.now_ns + SECOND
    ledger._ids = 10_000
    ledger._observed = before._observed
    ledger.note(inputs.LedgerRestores(cluster="lab", writer="restorer", era=1, reason="wiped"))
    for host in (H1, H2):
        ledger.start_host(host, run=2)
    ledger.now_ns += 60 * SECOND
    ledger.tick()
    ledger.tick(120)
    ledger.granted("01:00.0")
    return ledger


async def _checked(bodies: list[bytes], witnesses: list[Witness], archive: Path | None = None) -> Report:
    files = await ArchiveFiles.open(archive) if archive is not None else None
    return await check_ledger(MemoryLedger(_log(bodies)), witnesses, lambda _done, _all: None, files)


async def test_a_restored_log(tmp_path: Path) -> None:
    """It is decided again, audited and archived like any other; what knows of the lost records says nothing of it."""
    before = archived.some_log()
    later = _restored(before)
    head = before.state.head
    lost = Witness(name="allocator.sqlite", ledger_id=head.ledger_id, sequence=head.sequence, chain=head.chain)
    directory = await archived.archived(later.bodies, tmp_path / "archive")
    report = await _checked(later.bodies, [lost], directory)
    assert (report.problem, report.records, report.folded_only) == ("", len(later.bodies), 0)
    assert (await archived.checked(directory)).problem == ""
    assert (await replay(MemoryLedger(_log(later.bodies)), lambda _done, _all: None)).problem == ""


async def test_the_same_era_is_no_excuse() -> None:
    """A log that lost its end and was not restored is found, whatever else holds."""
    before = archived.some_log()
    head = before.state.head
    lost = Witness(name="allocator.sqlite", ledger_id=head.ledger_id, sequence=head.sequence, chain=head.chain)
    report = await _checked(before.bodies[:-LOST], [lost])
    assert report.sequence == len(before.bodies) - LOST + 1
    assert "missing" in report.problem


async def test_an_archive_with_more_than_was_restored(tmp_path: Path) -> None:
    """It is named where it and the log part, and why."""
    before = archived.some_log()
    later = _restored(before)
    directory = await archived.archived(before.bodies, tmp_path / "archive")
    report = await _checked(later.bodies, [], directory)
    assert report.sequence == len(before.bodies) - LOST + 1
    assert "restored from less than the archive holds" in report.problem


async def test_an_era_that_rises_by_itself_is_found() -> None:
    """Only the record that says so may raise the era: another one that does is no record of this log."""
    bodies = list(archived.some_log(4).bodies)
    at = len(bodies) - 3
    forged = [body.replace(b'"era":0', b'"era":1', 1) if number >= at else body for number, body in enumerate(bodies)]
    report = await _checked(damage.chained(forged), [])
    assert report.sequence == at + 1


def _log(bodies: list[bytes]) -> MemoryLog:
    log = MemoryLog()
    for body in bodies:
        log.append(body)
    return log
