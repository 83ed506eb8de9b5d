"""What `leasehold up` says of its binder to whoever started it."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.binder import imitated
from tests.binder.kernel import Kernel
from tests.support.running import HOST, leasehold


def test_a_binder_that_cannot_begin(tmp_path: Path) -> None:
    """Why it ended is said where `up` runs, and not only in the binder's log: here something is in its door's way."""
    kernel = Kernel(tmp_path / "machine")
    with tempfile.TemporaryDirectory(prefix="lh") as short, kernel.serving(Path(short) / "k"):
        door = Path(short) / "d"
        door.write_text("somebody's")
        played = {imitated.MACHINE: str(tmp_path / "machine"), imitated.KERNEL: f"{short}/k"}
        words = ("up", "--data", f"{short}/data", "--host", HOST, "--manage", "--door", str(door))
        with subprocess.Popen(
            [sys.executable, "-m", "tests.binder.imitated", *words],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, **played, "XDG_RUNTIME_DIR": short},
        ) as up:  # fmt: skip
            assert up.stdout is not None
            told = next((line for line in up.stdout if "the binder ended" in line), "")
            up.send_signal(signal.SIGINT)
            rest = up.stdout.read()
        assert f"hooks cannot be heard at {door}" in told, told + rest
        assert door.read_text() == "somebody's"
    kernel.close()


def test_a_door_without_a_binder(tmp_path: Path) -> None:
    """It is no use, and is refused rather than forgotten."""
    done = leasehold(tmp_path / "data", "up", "--door", str(tmp_path / "d"))
    assert (done.code, "door: " in done.err, "--manage" in done.err) == (2, True, True)
