"""A disk that fills up under a real `up`: releases still work, nothing answered is lost, and the way out is told."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.disks import small_disk_at
from tests.support.running import RunningUp, leasehold, running_up


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own for the data directory."""
    disk = tmp_path / "disk"
    disk.mkdir()
    with small_disk_at(disk, 160):
        yield disk


def fill(disk: Path, leave_bytes: int) -> Path:
    """Another program fills the disk, but for so much."""
    filler = disk / "filler"
    status = os.statvfs(disk)
    taken = filler.stat().st_size if filler.exists() else 0
    with filler.open("ab") as file:
        os.posix_fallocate(file.fileno(), 0, taken + status.f_bavail * status.f_frsize - leave_bytes)
    return filler


def free_names(up: RunningUp) -> list[str]:
    """PCI devices that nobody has, by name."""
    rows = leasehold(up.data, "devices", "--json").objects
    return [row["name"] for row in rows if row["state"] == "free" and row["kind"] == "pci"]


def until_turned_away(up: RunningUp, name: str) -> str:
    """Ask for a device, and give it back, until it is turned away for want of room; what is said then."""
    while True:
        done = leasehold(up.data, "lease", name, "--for", "me", "--ttl", "10m", "--json")
        if done.code:
            assert done.code == 4, done.err
            return done.err
        lease = done.object
        assert leasehold(up.data, "release", lease["lease"], "--token", str(lease["token"])).code == 0


@pytest.mark.timeout(240)
def test_a_disk_that_fills_up(small_disk: Path) -> None:
    """With little room a lease is turned away with the place where room is needed, a release is taken; with none at
    all, too; with room again everything goes on, and the whole log is in order.
    """
    data = small_disk / "data"
    with running_up(data) as up:
        first, second = free_names(up)[:2]
        held = leasehold(data, "lease", first, "--for", "me", "--ttl", "1h", "--json").object
        kept = leasehold(data, "lease", second, "--for", "me", "--ttl", "1h", "--json").object
        fill(small_disk, 8 * 1024 * 1024)
        said = until_turned_away(up, first if len(free_names(up)) == 0 else free_names(up)[0])
        assert "only releases are taken" in said and str(data) in said
        assert leasehold(data, "release", held["lease"], "--token", str(held["token"])).code == 0
        # Now there is none at all: the ballast makes the room for a release.
        filler = fill(small_disk, 0)
        released = leasehold(data, "release", kept["lease"], "--token", str(kept["token"]))
        assert released.code == 0, released.err
        filler.unlink()
        while (done := leasehold(data, "lease", first, "--for", "me", "--ttl", "1h", "--json")).code:
            assert done.code == 4, done.err
        ended = {row["lease"] for row in leasehold(data, "leases", "--all", "--json").objects if row["ended"]}
        assert {held["lease"], kept["lease"]} <= ended
        assert leasehold(data, "verify").code == 0
