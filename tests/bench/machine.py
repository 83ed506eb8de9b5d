"""What was measured on: the machine, its disk, the versions."""

import os
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Final

from leasehold.services.natsserver import find_binary
from tests.bench.measure import Figure, Part, Table, figure, percentile
from tests.bench.peers import first_line

SYNCS: Final = 200
SYNC_BYTES: Final = 2_048
PACKAGES: Final = ("leasehold", "nats-py", "msgspec", "uvloop", "aiosqlite", "pyudev", "asyncpg", "redis", "grpcio")


def describe(folder: Path) -> Part:
    """The machine as it is now; the disk is the one that `folder` lies on."""
    ordered = sorted(sync_ms(folder / "sync", SYNCS))
    figures = {"fsync p50 ms": figure([percentile(ordered, 50)]), "fsync p99 ms": figure([percentile(ordered, 99)])}
    rows = [
        ("processor", f"{_field('/proc/cpuinfo', 'model name')}, {os.cpu_count()} of them for us"),
        ("memory", f"{int(_field('/proc/meminfo', 'MemTotal').split()[0]) / 1e6:.0f} GB"),
        ("kernel", f"{platform.system()} {platform.release()}"),
        ("disk", _disk(folder)),
        ("append and fsync", _sync_text(figures)),
        ("load before the run", " ".join(f"{each:.2f}" for each in os.getloadavg())),
        ("when", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())),
        ("Python", f"{platform.python_implementation()} {platform.python_version()}"),
        ("server", first_line(str(find_binary()), "--version")),
        ("packages", ", ".join(_packages())),
    ]
    return Part([Table("Machine and versions", ("what", "it is"), rows)], figures)


def _sync_text(figures: dict[str, Figure]) -> str:
    p50, p99 = figures["fsync p50 ms"].median, figures["fsync p99 ms"].median
    return f"p50 {p50:.2f} ms, p99 {p99:.2f} ms ({SYNCS} times {SYNC_BYTES} bytes)"


def sync_ms(path: Path, times: int) -> list[float]:
    """How long it takes to append and fsync, each time, as the log's server does it."""
    found = []
    with path.open("wb", buffering=0) as file:
        for _ in range(times):
            begun_s = time.perf_counter()
            file.write(b"x" * SYNC_BYTES)
            os.fsync(file.fileno())
            found.append((time.perf_counter() - begun_s) * 1_000)
    path.unlink()
    return found


def _field(path: str, name: str) -> str:
    lines = Path(path).read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "unknown")


def _disk(folder: Path) -> str:
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    inside = [each for each in mounts if folder.is_relative_to(each[1])]
    device, at, kind, *_ = max(inside, key=lambda each: len(each[1]))
    return f"{kind} on {device} at {at}"


def _packages() -> list[str]:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return found
