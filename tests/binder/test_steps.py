"""Steps come to their end in their time, and say what went wrong; the host's real tools are run as they are."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from leasehold.services.binder import steps
from leasehold.services.binder.steps import Hanging, Steps, reset_usb, run_tool
from leasehold.services.watcher.sysfs import HostRoot


def steps_of(folder: Path, write: Callable[[str, str], None], *, ends: threading.Event | None = None) -> Steps:
    """Steps of a machine that is written to by `write`."""
    root = HostRoot(folder / "sys", folder / "proc", folder / "dev", folder / "run")
    return Steps(
        root, 60, write=write, run=run_tool, reset_port=reset_usb, hanging=Hanging(), ends=ends or threading.Event()
    )


def nothing(path: str, text: str) -> None:
    """A kernel that takes everything."""


def test_a_tool_is_run_and_heard() -> None:
    """What it wrote comes back, whatever bytes they are."""
    assert run_tool(["printf", "a b"]) == "a b"
    assert run_tool(["printf", r"\377x"]) == "�x"


def test_a_tool_that_is_not_there() -> None:
    """ENOENT, by which callers go another way."""
    with pytest.raises(FileNotFoundError):
        run_tool(["leasehold-has-no-such-tool"])


def test_a_tool_that_fails_says_why() -> None:
    """Its own words, in one line."""
    with pytest.raises(OSError, match="sh: it broke"):
        run_tool(["sh", "-c", "echo it broke >&2; exit 3"])


def test_a_tool_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is killed, and the time said."""
    monkeypatch.setattr(steps, "TOOL_S", 0.05)
    with pytest.raises(OSError, match=r"sleep took longer than 0.05 s") as raised:
        run_tool(["sleep", "60"])
    assert raised.value.errno == errno.ETIMEDOUT


def test_a_port_is_reset_by_the_ioctl_alone(tmp_path: Path) -> None:
    """What is no USB device refuses the ioctl; nothing is written to the node."""
    node = tmp_path / "node"
    node.write_text("as it was")
    with pytest.raises(OSError) as raised:
        reset_usb(str(node))
    assert raised.value.errno == errno.ENOTTY
    assert node.read_text() == "as it was"
    assert steps.USBDEVFS_RESET == 0x5514


def test_refusals_name_the_word_and_the_place(tmp_path: Path) -> None:
    """As the machine itself would write the path."""

    def refuse(path: str, text: str) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    refused = steps_of(tmp_path, refuse).tell("x", f"{tmp_path}/sys/bus/pci/drivers_probe", "0000:01:00.0")
    assert refused == ("the kernel refused 0000:01:00.0 in /sys/bus/pci/drivers_probe: Device or resource busy (EBUSY)")
    assert not steps_of(tmp_path, refuse).tell("x", "/y", "z", ignoring=(errno.EBUSY,))


def test_what_goes_wrong_otherwise_was_not_done(tmp_path: Path) -> None:
    """An error of any kind is a refusal, not a success."""

    def break_down(path: str, text: str) -> None:
        raise ValueError("embedded null byte")

    assert "embedded null byte" in steps_of(tmp_path, break_down).tell("x", "/y", "z")


def test_one_that_hangs_shuts_out_its_device_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the kernel does not come back, only other devices are told of; when it has, this one is again."""
    comes_back, told = threading.Event(), []

    def write(path: str, text: str) -> None:
        told.append(text)
        if text == "hang":
            comes_back.wait(60)

    hanging = Hanging()
    root = HostRoot(tmp_path / "sys")
    made = [
        Steps(root, time_s, write=write, run=run_tool, reset_port=reset_usb, hanging=hanging, ends=threading.Event())
        for time_s in (0.05, 60, 60)
    ]
    assert "has not come back from hang in" in made[0].tell("a", f"{root.sys}/y", "hang")
    assert "has not come back from hang in" in made[1].tell("a", f"{root.sys}/y", "more")
    assert not made[1].tell("b", f"{root.sys}/y", "other")
    assert told == ["hang", "other"]
    comes_back.set()
    assert made[2].until(lambda: not hanging.of("a"))
    assert not made[2].tell("a", f"{root.sys}/y", "more")


def test_so_many_hang_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that the kernel keeps are bounded."""
    monkeypatch.setattr(steps, "HANGING_MAX", 2)
    hanging = Hanging()
    for device in ("a", "b"):
        hanging.begin(device, "a word")
    assert hanging.of("c") == "2 words hang in the kernel"
    hanging.end("a")
    assert not hanging.of("c")


def test_an_end_ends_all_waits(tmp_path: Path) -> None:
    """Neither a wait nor a word is begun when the agent ends."""
    ends = threading.Event()
    ended = steps_of(tmp_path, nothing, ends=ends)
    assert not ended.tell("x", "/y", "z")
    ends.set()
    assert ended.tell("x", "/y", "z") == "the binder ends"
    assert not ended.until(lambda: False)
