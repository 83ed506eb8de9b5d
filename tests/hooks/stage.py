"""The hooks as they are installed: links to the scripts of `deploy/hooks`, run by the system's own Python."""

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from tests.support.tree import ROOT

HOOKS: Final = ROOT / "deploy/hooks"
UUID: Final = "c7a5fdbd-edaf-9455-926a-d65c16db1809"
ENDS_WITHIN_S: Final = 60.0


class Ended(NamedTuple):
    """A hook that has run."""

    code: int
    out: str
    err: str
    took_s: float


class Stage:
    """A host's hooks in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Short, as a socket lies in it.
        self._short = tempfile.TemporaryDirectory(prefix="hooks-")
        self.door = Path(self._short.name) / "door"
        self.state = folder / "state"
        self.settings = folder / "hooks.conf"
        for name, script in (("qemu", "libvirt_hook.py"), ("libxl", "libvirt_hook.py"), ("xl", "xl_wrapper.py")):
            (folder / name).symlink_to(HOOKS / script)
        self.xl = folder / "real/xl"
        self.set()

    def set(self, **said: str) -> None:
        """Write the settings; with short times unless told otherwise."""
        values = {"door": self.door, "state": self.state, "xl": self.xl, "timeout_s": "20", **said}
        lines = "".join(f"{name} = {value}\n" for name, value in values.items())
        self.settings.write_text(f"[hooks]\n{lines}")

    def run(self, name: str, *arguments: str, stdin: str | bytes | int = "") -> Ended:
        """Run a hook to its end. `stdin`: a text, or a descriptor."""
        begun_s = time.monotonic()
        given: dict[str, Any] = {"stdin": stdin} if isinstance(stdin, int) else {"input": _bytes(stdin)}
        done: subprocess.CompletedProcess[bytes] = subprocess.run(
            [str(self.folder / name), *arguments],
            env={**os.environ, "LEASEHOLD_HOOKS": str(self.settings)},
            capture_output=True, timeout=ENDS_WITHIN_S, check=False, **given,
        )  # fmt: skip
        return Ended(done.returncode, done.stdout.decode(), done.stderr.decode(), time.monotonic() - begun_s)

    def prepare(self, xml: str | bytes | int) -> Ended:
        """As libvirt does at the start of a domain."""
        return self.run("qemu", "web", "prepare", "begin", "-", stdin=xml)

    def release(self, xml: str | bytes | int) -> Ended:
        """As libvirt does when a domain has ended."""
        return self.run("qemu", "web", "release", "end", "-", stdin=xml)

    def close(self) -> None:
        self._short.cleanup()


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    stage.close()


def domain_xml(devices: str = "", before: str = "") -> str:
    """What libvirt gives a hook."""
    return (
        f"{before}<domain type='kvm' id='3'><name>web</name><uuid>{UUID}</uuid><memory unit='KiB'>1024</memory>"
        f"<devices><emulator>/usr/bin/qemu</emulator>{devices}</devices></domain>"
    )


PCI: Final = (
    "<hostdev mode='subsystem' type='pci' managed='yes'><driver name='vfio'/><source>"
    "<address domain='0x0000' bus='0x03' slot='0x00' function='0x0'/></source><alias name='hostdev0'/>"
    "<address type='pci' domain='0x0000' bus='0x00' slot='0x05' function='0x0'/></hostdev>"
)
