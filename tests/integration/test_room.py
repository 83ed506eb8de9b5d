"""Room on the disk: told in time, with a ballast that really takes, and gives back, its place."""

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from leasehold.events import limits, schedule_inputs
from leasehold.events.identities import RequestId
from leasehold.services.allocator.contact import monotonic_ns
from leasehold.services.ledger.streams import ensure_streams
from leasehold.services.room import BALLAST_FILE, Notices, Room, RoomKeeper, RoomNotice, Step, reserve_of
from tests.support.damage_allocator import lease, release, report_cards, running_allocator
from tests.support.disks import small_disk_at
from tests.support.servers import SUBJECTS, connected, server_at

MIB = 1024 * 1024


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 MiB of its own."""
    with small_disk_at(tmp_path, 64):
        yield tmp_path


def free(path: Path) -> int:
    """Free bytes of a disk."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def said(server: str, *, low: bool) -> RoomNotice:
    """A notice of a server."""
    return RoomNotice(server=server, free_bytes=0, reserve_bytes=1, low=low, path="/data")


def test_the_ballast_takes_its_place_and_gives_it_back(small_disk: Path) -> None:
    """A quarter of the reserve is really taken from the disk, and really there again afterwards."""
    room = Room(small_disk, "n1")
    before = free(small_disk)
    _, step = room.look()
    assert step is Step.LAY_BALLAST
    room.lay_ballast()
    taken = before - free(small_disk)
    assert taken >= reserve_of(64 * MIB) // 4
    assert room.look()[1] is Step.NOTHING
    room.drop_ballast()
    assert free(small_disk) >= before - MIB


def test_a_disk_that_fills_up(small_disk: Path) -> None:
    """First it is told that there is little room; when there is none, the ballast goes; with room again, both end."""
    room = Room(small_disk, "n1")
    room.lay_ballast()
    reserve = reserve_of(64 * MIB)
    filler = small_disk / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free(small_disk) - reserve + MIB)
    notice, step = room.look()
    assert notice.low and notice.path == str(small_disk) and step is Step.NOTHING
    with filler.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, filler.stat().st_size + free(small_disk))
    assert room.look()[1] is Step.DROP_BALLAST
    room.drop_ballast()
    assert room.look()[0].low
    filler.unlink()
    notice, step = room.look()
    assert not notice.low and step is Step.LAY_BALLAST


def test_a_ballast_for_which_there_is_no_room(small_disk: Path) -> None:
    """It is done without, and nothing half made stays behind."""
    with (small_disk / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free(small_disk) - MIB)
    Room(small_disk, "n1").lay_ballast()
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


def test_the_edge_is_no_flicker(tmp_path: Path) -> None:
    """Around the reserve it does not change with every byte: once low, it takes the ballast's size more."""
    room, disk = Room(tmp_path, "n1"), 10_000 * MIB
    reserve = reserve_of(disk)
    assert reserve == limits.ROOM_RESERVE_BYTES
    told = [room.look(free, disk)[0].low for free in (reserve, reserve - 1, reserve, reserve * 5 // 4)]
    assert told == [False, True, True, False]
    assert not (tmp_path / BALLAST_FILE).exists()


def test_what_an_allocator_hears() -> None:
    """One server with little room is enough; what was said long ago, and by too many, counts no more."""
    notices = Notices()
    notices.hear(said("n1", low=False), 0.0)
    assert notices.low(0.0) is None
    notices.hear(said("n2", low=True), 1.0)
    assert notices.low(2.0) == said("n2", low=True)
    assert notices.low(1.0 + limits.ROOM_SILENT_MS / 1_000) is None
    notices.hear(said("n2", low=False), 3.0)
    assert notices.low(3.0) is None
    for number in range(limits.SERVERS_MAX * 2):
        notices.hear(said(f"m{number}", low=False), 4.0)
    notices.hear(said("one_more", low=True), 4.0)
    assert notices.low(4.0) is None


async def test_a_full_disk_is_told_and_the_server_started_again(small_disk: Path) -> None:
    """Notices go out while there is little room, and one more when there is enough; the server is ended once."""
    told: list[bool] = []
    restarts: list[bool] = []

    async def tell(notice: RoomNotice) -> None:
        told.append(notice.low)

    keeper = RoomKeeper(Room(small_disk, "n1"), tell=tell, restart=lambda: restarts.append(True))
    await keeper.look()
    assert (small_disk / BALLAST_FILE).exists() and not told
    filler = small_disk / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free(small_disk))
    await keeper.look()
    await keeper.look()
    assert told == [True, True] and restarts == [True]
    assert not (small_disk / BALLAST_FILE).exists()
    filler.unlink()
    await keeper.look()
    await keeper.look()
    assert told == [True, True, False]
    assert (small_disk / BALLAST_FILE).exists()


def test_a_disk_that_is_full_without_a_ballast(tmp_path: Path) -> None:
    """The server may have given up a stream then: with a little room again it is started anew, and only once."""
    room, disk = Room(tmp_path, "n1"), 1_000 * MIB
    reserve = reserve_of(disk)
    frees = (reserve, 0, reserve // 16, reserve // 4, reserve // 4, reserve * 2)
    told = [room.look(free, disk)[1] for free in frees]
    assert told == [Step.NOTHING, Step.NOTHING, Step.NOTHING, Step.RESTART, Step.NOTHING, Step.LAY_BALLAST]


async def test_without_room_only_releases_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease and a renewal are turned away with the place where room is needed; a release is done, and who waits is
    let go; nothing expires; with room again there is a grace time first, and then everything goes on.
    """
    monkeypatch.setattr(limits, "CONTACT_MS", 50)
    monkeypatch.setattr(limits, "GRACE_MS", 600)
    async with server_at(tmp_path) as server, connected(server.url) as client:
        await ensure_streams(client, SUBJECTS)
        async with running_allocator(server.url) as running:
            await running.settled()
            await report_cards(client, running, 3)
            held = await running.decided("alice", lease(1, "held"))
            short = await running.decided("alice", lease(2, "short", ttl_ms=1_000))
            waiting = msgspec.structs.replace(lease(2, "waits"), wait_ms=60_000)
            queued = (await running.ask("alice", waiting)).queued
            running.allocator.hear_room(said("n1", low=True))
            refused = await running.ask("alice", lease(3, "more"))
            assert refused.outcome == "unavailable"
            assert "only releases" in refused.message and "/data" in refused.message
            assert (await running.ask("alice", release(held, "back"))).outcome == "released"
            withdrawn = schedule_inputs.WithdrawRequest(
                request_id=RequestId("no-more"), issued_at_ns=waiting.issued_at_ns, queued=queued
            )
            assert (await running.ask("alice", withdrawn)).outcome == "withdrawn"
            clock = running.allocator.contact.clock
            await running.until(lambda: (clock.now_ns(monotonic_ns()) or 0) > short.expires_at_ns)
            assert running.state.leases[short.lease].ended == ""
            before_ns = running.state.head.grace_until_ns
            running.allocator.hear_room(said("n1", low=False))
            await running.until(lambda: running.state.head.grace_until_ns > before_ns)
            assert running.state.leases[short.lease].ended == ""
            assert (await running.ask("alice", lease(3, "more"))).outcome == "granted"
            await running.until(lambda: running.state.leases[short.lease].ended)
