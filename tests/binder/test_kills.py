"""Wherever a binder is killed, the next run ends right, with what was noted before the first write: all handed over, or
everything as it was.

A kill is played twice: by the agent's end at each word to the kernel, before or behind its effect (nothing of the
process goes on from there, no roll-back either); and by real processes that kill themselves.
"""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import msgspec
import pytest

from leasehold.events.identities import DeviceKey
from leasehold.projections.handover import Back, Before, Ready, Target
from leasehold.services.binder import steps
from leasehold.services.lifeline import tied_to_us
from tests.binder.bench import Bench
from tests.binder.kernel import GPU, GPU_SOUND, NIC, STICK, VF0, Kernel, pci, usb

ROOT: Final = Path(__file__).parents[2]
WORDS_MAX: Final = 40

LEASES: Final = {
    "vf-and-stick": (pci(VF0), usb(STICK)),
    "group": (pci(GPU), pci(GPU_SOUND)),
}
KINDS: Final = {"override": ("vfio-pci", True), "ids": ("vfio-pci", False), "slot": ("pciback", True)}


class _Killed(Bench):
    """A binder that ends at its word number `at` to the kernel, before or behind the word's effect."""

    def __init__(self, kernel: Kernel, stub: str) -> None:
        super().__init__(kernel, stub)
        self.words = 0

    def kill_at(self, at: int, *, is_done: bool) -> None:
        """Let the next call end there; another run comes behind it."""
        self.ends = threading.Event()
        self.words = 0
        kernel, ends = self.kernel, self.ends

        def act(work: Callable[[], object]) -> None:
            self.words += 1
            if self.words == at:
                try:
                    if is_done:
                        work()
                finally:
                    ends.set()
            elif self.words < at:
                work()

        machine = self.machine_of(ends)
        machine._write = lambda path, text: act(lambda: kernel.write(path, text))
        machine._reset_port = lambda node: act(lambda: kernel.reset_port(node))
        self.machine = machine

    def start_again(self) -> None:
        """The next run."""
        self.ends = threading.Event()
        self.machine = self.machine_of(self.ends)
        self.kernel.told.clear()


def _moments() -> Iterable[tuple[int, bool]]:
    return ((at, is_done) for at in range(1, WORDS_MAX) for is_done in (False, True))


@pytest.fixture
def haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "SETTLE_S", 0.5)


@pytest.mark.usefixtures("haste")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lease", LEASES)
def test_killed_in_prepare_it_is_prepared_or_taken_back(tmp_path: Path, lease: str, kind: str) -> None:
    """The lease lives: the next run prepares it, and notes of then bring it back later. It ended: all is as it was."""
    keys = LEASES[lease]
    bench = _bench(tmp_path, kind)
    before = bench.traces()
    for goes_on in (True, False):
        for at, is_done in _moments():
            moment = f"word {at}, done {is_done}, goes on {goes_on}"
            bench.notes.clear()
            bench.kill_at(at, is_done=is_done)
            outcome = bench.prepare(*keys)
            bench.start_again()
            if outcome is None and goes_on:
                known = [_target(bench, key) for key in keys]
                again = bench.machine.prepare(known, note=lambda _: None)
                assert isinstance(again, Ready), f"{moment}: {again}"
                assert [each.was_driver for each in again.devices] == [bench.notes[key].driver for key in keys]
            _all_back(bench, keys, before, moment)
            if outcome is not None:
                assert isinstance(outcome, Ready), f"{moment}: {outcome}"
                break
        else:
            pytest.fail("it never came to its end")
    bench.kernel.close()


@pytest.mark.usefixtures("haste")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lease", LEASES)
def test_killed_in_giving_back_it_is_given_back(tmp_path: Path, lease: str, kind: str) -> None:
    """Whatever part of the way back was done, the next run does the rest."""
    keys = LEASES[lease]
    bench = _bench(tmp_path, kind)
    before = bench.traces()
    for key in keys:
        for at, is_done in _moments():
            bench.notes.clear()
            bench.start_again()
            bench.ready(*keys)
            bench.kill_at(at, is_done=is_done)
            outcome = bench.take_back(key, ours=keys)
            bench.start_again()
            _all_back(bench, keys, before, f"{key}, word {at}, done {is_done}")
            if outcome is not None:
                assert isinstance(outcome, Back), f"{key}, word {at}: {outcome}"
                break
        else:
            pytest.fail("it never came to its end")
    bench.kernel.close()


def _bench(folder: Path, kind: str) -> _Killed:
    stub, overrides = KINDS[kind]
    bench = _Killed(Kernel(folder / "machine", overrides=overrides), stub)
    # What a stub's module leaves behind when it is loaded is not the binder's.
    for module in ("vfio-pci", "xen-pciback"):
        bench.kernel.run(["modprobe", module])
    return bench


def _target(bench: Bench, key: DeviceKey) -> Target:
    return Target(description=bench.kernel.describe(key), before=bench.notes[key])


def _all_back(bench: Bench, keys: Iterable[DeviceKey], before: object, moment: str) -> None:
    for key in keys:
        outcome = bench.take_back(key, ours=tuple(keys))
        assert isinstance(outcome, Back), f"{moment}: {outcome}"
    assert bench.traces() == before, moment


# --- real processes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("at", [2, 4])
def test_a_killed_process_leaves_notes_that_bring_all_back(
    kernel: Kernel, bench: Bench, tmp_path: Path, at: int, moment: str
) -> None:
    """SIGKILL before or behind its word number `at` in prepare: its notes on disk bring the function back."""
    before = bench.traces()
    notes = tmp_path / "notes.json"
    with kernel.serving(tmp_path / "socket"):
        ended = _process(tmp_path, notes, "prepare", at, moment)
        assert ended == -signal.SIGKILL
        noted = msgspec.json.decode(notes.read_bytes(), type=list[Before])
        bench.notes = {each.key: each for each in noted}
        again = _process(tmp_path, notes, "take_back", at, moment)
    # Half of the way back has fewer words than half of the way there.
    assert again in (0, -signal.SIGKILL)
    assert isinstance(bench.take_back(pci(NIC)), Back)
    assert bench.traces() == before


def _process(folder: Path, notes: Path, verb: str, at: int, moment: str) -> int:
    words = ["-m", "tests.binder.killed", str(folder), str(notes), verb, str(at), moment, pci(NIC)]
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, preexec_fn=tied_to_us(), timeout=60, check=False
    ).returncode
