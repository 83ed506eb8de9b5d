"""An archive's directory asked without a bus: with its read models, without them, and where something is wrong."""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from leasehold.events.errors import CorruptLedgerError, InvalidInputError, UnavailableError
from leasehold.events.position import end_of_record
from leasehold.services.archive.keeper import build
from leasehold.services.archive.ledger import ArchivedLedger
from leasehold.services.archive.models import FILE
from leasehold.services.ledger.memory import MemoryLedger, MemoryLog
from leasehold.services.ledger.port import Entry
from leasehold.services.offline import OfflineArchive
from leasehold.services.past import Past
from tests.archive.records import NO_RESERVE, made, writing
from tests.integration.growing import Grower, pci

DEVICE = "h1/pci/0000:00:05.0"
OTHER = "h1/pci/0000:00:06.0"
TURNS = 5


async def grown(writer: str = "alloc1") -> Grower:
    """A log in which a device went from hand to hand, and is held in the end."""
    grower = Grower(MemoryLedger(MemoryLog()), writer=writer)
    await grower.start()
    await grower.report("h1", pci(5), pci(6))
    for number in range(TURNS):
        await grower.turn(DEVICE, holder=f"vm:{number}")
        await grower.pass_time(60)
    await grower.ask("alice", grower.lease(OTHER, holder="vm:last", request_id="last"))
    return grower


async def archived(directory: Path, bodies: Sequence[bytes]) -> Path:
    """An archive of these records, without models."""
    return await made(directory, [Entry(sequence, body) for sequence, body in enumerate(bodies, 1)])


async def modelled(directory: Path) -> Path:
    """The archive with models that go to its end."""
    ledger = ArchivedLedger(directory)
    await build(ledger, directory / FILE)
    await ledger.close()
    return directory


def contents(directory: Path) -> dict[str, str]:
    """What stands in each file of a directory."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


async def holders(directory: Path, said: list[str] | None = None) -> tuple[list[str], int]:
    """Who has something now, as the archive tells it, and as of which position."""
    async with OfflineArchive(directory, say=(said if said is not None else []).append) as archive:
        rows = Past(archive).owners()
        found = [row.holder for row in await rows.all()]
        assert rows.place is not None
        return found, rows.place.as_of


async def test_with_and_without_models(tmp_path: Path) -> None:
    """The answers are the same with models beside the archive and without; only without them something is said."""
    grower = await grown()
    bare = await archived(tmp_path / "bare", grower.bodies)
    beside = await modelled(await archived(tmp_path / "beside", grower.bodies))
    said: list[str] = []
    assert await holders(beside, said) == (["vm:last"], end_of_record(len(grower.bodies)))
    assert not said
    assert await holders(bare, said) == await holders(beside)
    assert len(said) == 1
    assert f"from {len(grower.bodies)} records" in said[0]


async def test_nothing_is_written(tmp_path: Path) -> None:
    """Asking leaves every file of the archive as it was, and makes none that stays."""
    grower = await grown()
    directory = await archived(tmp_path / "archive", grower.bodies)
    before = contents(directory)
    await holders(directory)
    assert {name: digest for name, digest in contents(directory).items() if name in before} == before
    assert not (directory / FILE).exists()


async def test_models_that_are_behind(tmp_path: Path) -> None:
    """Models that nobody keeps any more are completed elsewhere; the answer is of the archive's end."""
    grower = await grown()
    half = len(grower.bodies) // 2
    directory = await modelled(await archived(tmp_path / "archive", grower.bodies[:half]))
    async with writing(directory, NO_RESERVE) as writer:
        await writer.write([Entry(sequence, body) for sequence, body in enumerate(grower.bodies, 1) if sequence > half])
    before = contents(directory)[FILE]
    said: list[str] = []
    assert await holders(directory, said) == (["vm:last"], end_of_record(len(grower.bodies)))
    assert said
    assert contents(directory)[FILE] == before


@pytest.mark.parametrize(
    ("writer", "more", "fewer"),
    [("alloc1", 0, 0), ("alloc1", 3, 0), ("alloc2", 0, 3)],
    ids=["as_many", "fewer", "more"],
)
async def test_models_of_another_archive(tmp_path: Path, writer: str, more: int, fewer: int) -> None:
    """Models that were made from other records are not believed, however many these are."""
    grower, other = await grown(), await grown(writer)
    await other.ask("bob", other.lease(DEVICE, holder="vm:other"))
    await grower.ask("bob", grower.lease(DEVICE, holder="vm:real"))
    assert len(grower.bodies) == len(other.bodies)
    for _ in range(more):
        await grower.pass_time(1)
        await grower.ask("bob", grower.lease(OTHER, holder="vm:refused"))
    for _ in range(fewer):
        await other.pass_time(1)
        await other.ask("bob", other.lease(OTHER, holder="vm:refused"))
    directory = await archived(tmp_path / "archive", grower.bodies)
    foreign = await modelled(await archived(tmp_path / "other", other.bodies))
    shutil.copy(foreign / FILE, directory / FILE)
    assert (await holders(directory))[0] == ["vm:real", "vm:last"]


@pytest.mark.parametrize("body", [b"", b"garbage" * 1_000, None], ids=["empty", "garbage", "half"])
async def test_models_that_are_damaged(tmp_path: Path, body: bytes | None) -> None:
    """A file of models that cannot be read is passed over, and what is told is the same."""
    grower = await grown()
    directory = await modelled(await archived(tmp_path / "archive", grower.bodies))
    whole = (directory / FILE).read_bytes()
    (directory / FILE).write_bytes(whole[: len(whole) // 2] if body is None else body)
    said: list[str] = []
    assert await holders(directory, said) == (["vm:last"], end_of_record(len(grower.bodies)))
    assert said


async def test_an_archive_that_lost_its_end(tmp_path: Path) -> None:
    """Where the models know more records than there are, nothing is answered: the record that is missing is named."""
    grower = await grown()
    whole = await modelled(await archived(tmp_path / "whole", grower.bodies))
    short = await archived(tmp_path / "short", grower.bodies[:-2])
    shutil.copy(whole / FILE, short / FILE)
    with pytest.raises(
        CorruptLedgerError, match=f"record {len(grower.bodies) - 1}: .*ends at {len(grower.bodies) - 2}"
    ):
        await holders(short)


async def test_a_damaged_record(tmp_path: Path) -> None:
    """Models are not made from an archive that misses records in its midst."""
    grower = await grown()
    directory = await archived(tmp_path / "archive", grower.bodies)
    (segment,) = ArchivedLedger(directory).segments()
    body = bytearray(segment.path.read_bytes())
    at = body.index(b"vm:2")
    body[at : at + 4] = b"vm:9"
    segment.path.chmod(0o600)
    segment.path.write_bytes(body)
    with pytest.raises(CorruptLedgerError, match=r"record \d+"):
        await holders(directory)


async def test_what_is_no_archive(tmp_path: Path) -> None:
    """A place without an archive is refused, and one that has it inside is told."""
    with pytest.raises(InvalidInputError, match="not a directory"):
        await holders(tmp_path / "nowhere")
    with pytest.raises(InvalidInputError, match="no archive's directory"):
        await holders(tmp_path)
    (tmp_path / "archive").mkdir()
    with pytest.raises(InvalidInputError, match=f"there is one in {tmp_path / 'archive'}"):
        await holders(tmp_path)


async def test_bounds_hold_without_a_bus(tmp_path: Path) -> None:
    """Questions are checked as on the bus, what is not known is said as there, and it has to be opened first."""
    directory = await modelled(await archived(tmp_path / "archive", (await grown()).bodies))
    with pytest.raises(UnavailableError, match="async with"):
        await Past(OfflineArchive(directory)).owners().all()
    async with OfflineArchive(directory) as archive:
        past = Past(archive)
        with pytest.raises(InvalidInputError, match="host"):
            await past.owners(host="../..").all()
        with pytest.raises(InvalidInputError, match="nothing"):
            await past.blame("nothing").all()
        with pytest.raises(UnavailableError, match="not been read yet"):
            await past.owners(2**52).all()
        assert (await past.archive()).sequence > TURNS
        assert [row.holder for row in await past.who(DEVICE).all()] == [f"vm:{number}" for number in range(TURNS)]
        assert [row.text for row in await past.blame("last", principal="alice").all()]
