"""Debian packages, fetched into a folder of ours and unpacked there. Nothing is installed on this machine.

apt is given a configuration of its own: its lists, its archive and its sources are ours, so neither what this machine
has enabled nor what it has pinned plays a part. Only what is installed here counts: QEMU's libraries need not come
twice.
"""

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Final

KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
TOOLS: Final = ("apt-get", "apt-cache", "dpkg-deb", "chroot", "unshare", "mkfs.ext4", "perl")
"""What must be here already; every Debian 12 has it."""
_SOURCES: Final = (
    ("http://deb.debian.org/debian", "bookworm"),
    ("http://deb.debian.org/debian", "bookworm-updates"),
    ("http://deb.debian.org/debian", "bookworm-backports"),
    ("http://deb.debian.org/debian-security", "bookworm-security"),
)
_APT_S: Final = 600


class CannotBuildError(Exception):
    """Why there can be no guest here."""


def run(*command: str | Path, timeout_s: float = _APT_S, environment: dict[str, str] | None = None) -> str:
    """Run a command to its end; what it wrote. Raises CannotBuildError with its last words."""
    try:
        done = subprocess.run(
            [str(each) for each in command],
            check=False,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env={**os.environ, "LC_ALL": "C", **(environment or {})},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotBuildError(f"{command[0]}: {error}") from error
    if done.returncode:
        said = " / ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise CannotBuildError(f"{' '.join(str(each) for each in command[:4])} …: {said}")
    return done.stdout


def missing_tools() -> list[str]:
    """What this machine lacks to build a guest; empty if it can."""
    lacking = [tool for tool in TOOLS if shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None]
    return lacking + ([] if KEYRING.exists() else [str(KEYRING)])


class Archive:
    """Debian's archive, as far as it was fetched into `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._configuration = folder / "apt.conf"
        self._is_updated = False

    @property
    def sources(self) -> list[str]:
        """The lines of its sources.list."""
        return [f"deb [signed-by={KEYRING}] {url} {suite} main" for url, suite in _SOURCES]

    def _apt(self, *words: str | Path) -> str:
        if not self._is_updated:
            self._set_up()
            self._is_updated = True
            self._apt("apt-get", "update")
        return run(*words, environment={"APT_CONFIG": str(self._configuration), "DEBIAN_FRONTEND": "noninteractive"})

    def _set_up(self) -> None:
        for name in ("lists/partial", "archives/partial", "parts"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        (self._folder / "sources.list").write_text("\n".join(self.sources) + "\n")
        values = {
            "Dir::Etc::parts": self._folder / "parts",
            "Dir::Etc::sourcelist": self._folder / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::State::lists": self._folder / "lists",
            "Dir::Cache": self._folder,
            "Dir::Cache::archives": self._folder / "archives",
            "APT::Sandbox::User": "root",
            "APT::Install-Recommends": "false",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
        }
        self._configuration.write_text("".join(f'{name} "{value}";\n' for name, value in values.items()))

    def versions(self, package: str) -> list[str]:
        """Those that the archive has now; none of a package that it does not know."""
        return [line.split("|")[1].strip() for line in self._apt("apt-cache", "madison", package).splitlines()]

    def needed_by(self, package: str) -> list[str]:
        """The names of the packages that a package depends on."""
        lines = self._apt("apt-cache", "depends", package).splitlines()
        return [line.partition("Depends:")[2].strip() for line in lines if "Depends:" in line]

    def _named(self, package: str, version: str) -> str:
        """The pinned version as apt takes it; whatever there is now, once the archive has dropped that version."""
        return f"{package}={version}" if version in self.versions(package) else package

    def with_libraries(self, pins: dict[str, str], release: str) -> list[Path]:
        """Packages and those that they need and this machine has not got, as files."""
        archives = self._folder / "archives"
        for old in archives.glob("*.deb"):
            old.unlink()
        named = [self._named(package, version) for package, version in pins.items()]
        self._apt("apt-get", "install", "-y", "-d", "--reinstall", "-t", release, *named)
        return sorted(archives.glob("*.deb"))

    def alone(self, package: str, version: str, into: Path) -> Path:
        """One package as a file, without what it needs."""
        into.mkdir(parents=True, exist_ok=True)
        for old in into.glob(f"{package}_*.deb"):
            old.unlink()
        self._apt("sh", "-c", 'cd "$0" && exec apt-get download "$1"', into, self._named(package, version))
        (found,) = into.glob(f"{package}_*.deb")
        return found


def unpack(packages: Iterable[Path], into: Path) -> None:
    """The files of packages, without their scripts."""
    into.mkdir(parents=True, exist_ok=True)
    for package in packages:
        run("dpkg-deb", "-x", package, into)
