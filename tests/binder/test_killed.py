"""A binder that is killed at any of its words to the kernel: the core, its notes and the machine that it acts on.

The kernel is played. Nothing that the binder would have done behind the moment of its death is done.
"""

import errno
import threading
from collections.abc import Sequence

import pytest

from leasehold.events.identities import DeviceKey
from leasehold.events.inputs import GivenBack, Prepared
from leasehold.projections.handing import Handing
from leasehold.projections.handover import Before
from leasehold.services.binder.acting import act
from leasehold.services.binder.machine import Machine
from tests.binder.course import HOST, Course
from tests.binder.kernel import NIC, STICK, VF0, Kernel, pci, usb

DEVICES = {NIC: pci(NIC), VF0: pci(VF0), STICK: usb(STICK)}
"""A card, a virtual function with its network settings, and a stick: one lease holds all three."""
DRIVERS = {NIC: "e1000e", VF0: "igbvf", f"{STICK}:1.0": "usb-storage"}
STUBBED = {NIC: "vfio-pci", VF0: "vfio-pci", f"{STICK}:1.0": ""}
WORDS_MAX = 100


class Mortal:
    """One run of a binder on the played machine. It dies before, or behind, its `dies_at`-th word; 0: it does not."""

    def __init__(self, course: Course, kernel: Kernel, *, dies_at: int = 0, is_said: bool = False) -> None:
        self._course = course
        self._kernel = kernel
        self._left = dies_at
        self._is_said = is_said
        self._ends = threading.Event()
        self._lock = threading.Lock()
        self.is_dead = False
        self._machine = Machine(kernel.root, write=self._write, run=self._run, reset_port=self._reset, ends=self._ends)
        course.handing = Handing(HOST, course.disk, boot=course.boot)
        assert course.sync()

    def _word(self, say: object) -> None:
        with self._lock:
            if self.is_dead:
                raise OSError(errno.EINTR, "nobody is there any more")
            self._left -= 1
            if self._left == 0:
                self.is_dead = True
                self._ends.set()
                if not self._is_said:
                    raise OSError(errno.EINTR, "nobody is there any more")
        say()  # type: ignore[operator]

    def _write(self, path: str, text: str) -> None:
        self._word(lambda: self._kernel.write(path, text))

    def _reset(self, node: str) -> None:
        self._word(lambda: self._kernel.reset_port(node))

    def _run(self, words: Sequence[str]) -> str:
        said: list[str] = []
        self._word(lambda: said.append(self._kernel.run(words)))
        return said[0]

    def works(self) -> bool:
        """Do what there is to be done until nothing is left; false if it died."""
        course = self._course
        for _ in range(WORDS_MAX):
            jobs = course.jobs()
            for job in jobs:
                outcome = act(self._machine, job, self._note, course.now_ms)
                if self.is_dead:
                    return False
                course.done(job, outcome)
            if not course.hears_us() and not jobs:
                return True
        raise AssertionError("it does not come to rest")

    def _note(self, befores: Sequence[Before]) -> None:
        if self.is_dead:
            raise OSError(errno.EINTR, "nobody is there any more")
        self._course.handing.noted(befores)
        self._course.disk = self._course.handing.notes


def drivers(kernel: Kernel) -> dict[str, str]:
    """What everything is bound to."""
    return {name: kernel.driver(name) for name in DRIVERS}


def course_of(kernel: Kernel) -> Course:
    """A log that knows the machine."""
    course = Course()
    course.picture = kernel.picture()
    course.fold.picture = dict(course.picture)
    assert course.sync()
    return course


@pytest.mark.parametrize("is_said", [False, True], ids=["before", "behind"])
def test_at_each_word(kernel: Kernel, is_said: bool) -> None:
    """Wherever it dies while it prepares and while it takes back, the next run ends as if it had not, and what the card
    had set for its virtual function is as it was.
    """
    keys: tuple[DeviceKey, ...] = tuple(DEVICES.values())
    vfs, course, deaths = [dict(vf) for vf in kernel.vfs.values()], course_of(kernel), 0
    assert drivers(kernel) == DRIVERS
    for dies_at in range(1, WORDS_MAX):
        lease = course.grant(*keys)
        prepared = Mortal(course, kernel, dies_at=dies_at, is_said=is_said).works()
        assert prepared or Mortal(course, kernel).works()
        assert drivers(kernel) == STUBBED, dies_at
        assert {word.key for word in course.told if isinstance(word, Prepared)} == set(keys), dies_at
        course.release(lease)
        taken = Mortal(course, kernel, dies_at=dies_at, is_said=is_said).works()
        assert taken or Mortal(course, kernel).works()
        assert drivers(kernel) == DRIVERS, dies_at
        assert [dict(vf) for vf in kernel.vfs.values()] == vfs, dies_at
        assert {word.key for word in course.told if isinstance(word, GivenBack)} == set(keys), dies_at
        assert all(not note.step and note.before is None for note in course.disk), dies_at
        course.told.clear()
        deaths += (not prepared) + (not taken)
        if prepared and taken:
            break
    print(f"{deaths} deaths")
    assert deaths > 10


def test_at_each_word_and_the_lease_is_over_by_then(kernel: Kernel) -> None:
    """What a run that died had begun to prepare is taken back by the next one, if the lease has ended meanwhile."""
    keys, course, deaths = tuple(DEVICES.values()), course_of(kernel), 0
    for dies_at in range(1, WORDS_MAX):
        lease = course.grant(*keys)
        if Mortal(course, kernel, dies_at=dies_at, is_said=True).works():
            break
        deaths += 1
        course.release(lease)
        assert Mortal(course, kernel).works()
        assert drivers(kernel) == DRIVERS, dies_at
        assert all(course.fold.holds[key].given_back for key in keys)
    print(f"{deaths} deaths")
    assert deaths > 5
