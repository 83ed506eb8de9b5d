"""A binder's notes on disk: durable, whole, one binder's at a time, and never of another boot."""

import os
from pathlib import Path

import msgspec
import pytest

from leasehold.events.errors import StorageError, StoreInUseError
from leasehold.events.hostdevs import Hold
from leasehold.projections.handmemory import HandMemory
from leasehold.projections.handnotes import PREPARED, Grant, Note
from leasehold.projections.handover import Before, PreparedDevice, VfNetwork
from leasehold.services.binder.notes import Notes, boot_of
from leasehold.services.watcher.sysfs import HostRoot
from tests.binder.course import GPU, NIC

BEFORE = Before(
    key=NIC, kind="pci", sysname="0000:03:00.0", driver="igbvf", stub="vfio-pci", way="override",
    interfaces={"1.0": "usb-storage"}, network=VfNetwork(function=GPU, number=3, mac="02:00:00:00:00:01", trust=False),
)  # fmt: skip
NOTE = Note(
    key=NIC, floor=2**60, step=PREPARED, lease=512, granted_at_ns=7, token=512, boot="b1", before=BEFORE,
    prepared=PreparedDevice(key=NIC, driver="vfio-pci", was_driver="igbvf", reset="flr"), detached=BEFORE,
)  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> HostRoot:
    """A machine with nothing on it."""
    (tmp_path / "run").mkdir()
    return HostRoot(tmp_path / "sys", tmp_path / "proc", tmp_path / "dev", tmp_path / "run")


def test_what_is_written_is_read(tmp_path: Path, root: HostRoot) -> None:
    """All of it; and a file half written by a run that died does no harm."""
    notes = Notes(tmp_path / "binder.json", root)
    assert notes.open() == ()
    notes.write([NOTE, Note(key=GPU, floor=5)])
    notes.close()
    (tmp_path / ".binder.json.0123456789abcdef.new").write_bytes(b'{"format": 1, "dev')
    assert Notes(tmp_path / "binder.json", root).open() == (NOTE, Note(key=GPU, floor=5))
    assert (tmp_path / "binder.json").stat().st_mode & 0o777 == 0o600


def test_nothing_is_written_twice(tmp_path: Path, root: HostRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is on disk already costs nothing; what changed is on disk, with its name, when `write` returns."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    notes = Notes(tmp_path / "binder.json", root)
    notes.open()
    for _ in range(3):
        notes.write([NOTE])
    assert len(synced) == 2
    notes.close()


@pytest.mark.parametrize("is_apart", [False, True])
def test_one_binder_acts_on_a_host(tmp_path: Path, root: HostRoot, is_apart: bool) -> None:
    """Another one is refused, wherever it keeps its notes, until the first has ended."""
    first = Notes(tmp_path / "binder.json", root)
    first.open()
    second = Notes(tmp_path / ("other.json" if is_apart else "binder.json"), root)
    with pytest.raises(StoreInUseError):
        second.open()
    first.close()
    second.open()
    second.close()


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"format": 2, "devices": []}', b'{"format": 1, "devices": [1]}'])
def test_notes_that_cannot_be_read(tmp_path: Path, root: HostRoot, body: bytes) -> None:
    """The binder does not begin: it would not know what is to be taken back."""
    (tmp_path / "binder.json").write_bytes(body)
    notes = Notes(tmp_path / "binder.json", root)
    with pytest.raises(StorageError):
        notes.open()
    (tmp_path / "binder.json").unlink()
    notes.open()
    notes.close()


def test_the_boot(root: HostRoot) -> None:
    """A machine that does not say which boot it is in has always the same."""
    assert boot_of(root) == ""
    folder = root.proc / "sys/kernel/random"
    folder.mkdir(parents=True)
    (folder / "boot_id").write_text("b1\n")
    assert boot_of(root) == "b1"


def test_of_another_boot_only_floors_count() -> None:
    """Nothing that was done outlived it."""
    assert HandMemory([NOTE], "b1").all == (NOTE,)
    assert HandMemory([NOTE], "b2").all == (Note(key=NIC, floor=2**60),)


def test_floors_never_go_back() -> None:
    """Whatever the log says, and whatever is begun."""
    memory = HandMemory([NOTE], "b1")
    memory.raise_floors([Hold(key=NIC, floor=7), Hold(key=GPU, floor=9)])
    memory.begin(NIC, Grant(8, 8), 8)
    memory.clear(NIC)
    assert [note.floor for note in memory.all] == [2**60, 9]
    memory.raise_floors([Hold(key=NIC, floor=2**60 + 1)])
    assert memory.of(NIC).floor == 2**60 + 1


def test_what_it_was_before_is_noted_once() -> None:
    """The first run's word counts: a later one may find it half done. Another lease begins anew."""
    memory = HandMemory([], "b1")
    memory.begin(NIC, Grant(1, 1), 1)
    memory.writes_to(BEFORE)
    memory.begin(NIC, Grant(1, 1), 1)
    memory.writes_to(msgspec.structs.replace(BEFORE, driver="vfio-pci"))
    assert memory.of(NIC).before == BEFORE
    memory.begin(NIC, Grant(1, 2), 1)
    assert memory.of(NIC).before is None
