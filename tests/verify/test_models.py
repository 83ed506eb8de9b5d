"""Read models are compared with what comes out of their archive."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from leasehold.events.errors import UnavailableError
from leasehold.services.archive.keeper import build
from leasehold.services.archive.ledger import ArchivedLedger
from leasehold.services.archive.rebuilding import MODELS_FILE
from leasehold.services.verifying.models import check_models
from tests.support.running import leasehold
from tests.verify import archived

FREED = """
UPDATE ownership SET freed_position = 0 WHERE (device, from_position) = (SELECT device, from_position FROM ownership)
"""


async def _with_models(folder: Path, behind: int = 0) -> Path:
    """An archive with models, which are so many records behind it."""
    bodies = archived.some_log().bodies
    directory = await archived.archived(bodies[: len(bodies) - behind], folder / "archive")
    await build(ArchivedLedger(directory), directory / MODELS_FILE)
    return await archived.archived(bodies, directory)


def _change(directory: Path, sql: str) -> None:
    with closing(sqlite3.connect(directory / MODELS_FILE)) as database:
        assert database.execute(sql).rowcount == 1
        database.commit()


@pytest.mark.parametrize("behind", [0, 7])
async def test_models_as_they_were_built(tmp_path: Path, behind: int) -> None:
    """Nothing is found in models as they were built, also if they are behind the archive; nothing is left over."""
    directory = await _with_models(tmp_path, behind)
    last = len(archived.rows_of(directory))
    report = await check_models(directory)
    assert (report.problem, report.sequence) == ("", last - behind)
    assert [path.name for path in tmp_path.iterdir()] == ["archive"]


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        (
            "UPDATE lease SET holder = 'thief' WHERE lease = (SELECT min(lease) FROM lease)",
            "table lease: .*thief.* does",
        ),
        ("DELETE FROM refusal WHERE position = (SELECT max(position) FROM refusal)", "table refusal: .* is missing"),
        (FREED, "table ownership: .* does not come out"),
        ("INSERT INTO name VALUES ('x', 'y')", "table name: .*does not come out"),
    ],
)
async def test_a_row_that_is_another(tmp_path: Path, sql: str, says: str) -> None:
    """A row that is changed, gone or added is shown, with its table; the archive itself is as it was."""
    directory = await _with_models(tmp_path)
    _change(directory, sql)
    with pytest.raises(AssertionError, match=says):
        assert (await check_models(directory)).problem == ""


async def test_the_command(tmp_path: Path) -> None:
    """`verify --archive --models` says up to where they are right, or exits 1 with what is not; without models, 4."""
    directory = await _with_models(tmp_path)
    arguments = ("verify", "--archive", str(directory), "--models")
    done = leasehold(None, *arguments)
    assert done.code == 0, done.err
    assert f"models    up to record {len(archived.rows_of(directory))} as they are built anew" in done.out
    _change(directory, "INSERT INTO name VALUES ('x', 'y')")
    done = leasehold(None, *arguments)
    assert done.code == 1
    assert done.err.startswith("NOT VERIFIED: models.sqlite, table name: ")
    (directory / MODELS_FILE).unlink()
    with pytest.raises(UnavailableError):
        await check_models(directory)
    assert leasehold(None, *arguments).code == 4
