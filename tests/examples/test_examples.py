"""The examples of the documentation do what they say, as programs of their own."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paper_hosts import PaperHosts, card, paper_hosts
from tests.support.running import RunningUp, leasehold, running_up

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
UUID = "c0ffee00-0000-4000-8000-000000000008"


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningUp, PaperHosts]]:
    """Two hosts with four cards each, two at each NUMA node."""
    cards = [card(slot, numa=slot % 2) for slot in range(1, 5)]
    with (
        running_up(tmp_path_factory.mktemp("up") / "data") as up,
        paper_hosts(up, {"h1": list(cards), "h2": list(cards)}) as hosts,
    ):
        yield up, hosts


def run(up: RunningUp, name: str, *arguments: str) -> str:
    """What an example prints; it must end well."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        capture_output=True, text=True, timeout=60, check=False, env={"LEASEHOLD_DATA": str(up.data)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr, done.stderr
    return done.stdout


def living(up: RunningUp) -> list[str]:
    """The holders of living leases."""
    return [row["holder"] for row in leasehold(up.data, "leases", "--json").objects]


def test_each_has_its_test() -> None:
    """No example is left out here."""
    told = set(re.findall(r'"(\w+\.py)"', Path(__file__).read_text()))
    assert {path.name for path in EXAMPLES.glob("*.py")} <= told


def test_five_lines(stage: tuple[RunningUp, PaperHosts]) -> None:
    """A card is had, and given back."""
    assert re.fullmatch(r"L\d+ has h1/pci/0000:00:01\.0\n", run(stage[0], "five_lines.py"))
    assert living(stage[0]) == []


def test_waiting(stage: tuple[RunningUp, PaperHosts]) -> None:
    """Two cards of one NUMA node of one host."""
    found = re.fullmatch(r"L\d+ has (h\d)/pci/0000:00:(\d\d)\.0, (h\d)/pci/0000:00:(\d\d)\.0\n",
                         run(stage[0], "waiting.py"))  # fmt: skip
    assert found is not None
    assert found[1] == found[3]
    assert int(found[2]) % 2 == int(found[4]) % 2


def test_gang(stage: tuple[RunningUp, PaperHosts]) -> None:
    """A card of the better kind on each of two hosts."""
    assert re.fullmatch(r"L\d+ has h1/pci/0000:00:02\.0, h2/pci/0000:00:02\.0\n", run(stage[0], "gang.py"))


def test_many(stage: tuple[RunningUp, PaperHosts]) -> None:
    """Three leases are had; one is let go, and at the end all are."""
    assert run(stage[0], "many.py").endswith("2 are kept\n")
    assert living(stage[0]) == []


def test_drain(stage: tuple[RunningUp, PaperHosts]) -> None:
    """Who holds something of the host is told before, and nobody else."""
    up, _ = stage
    granted = [
        leasehold(up.data, "lease", f"{host}/pci/0000:00:04.0", "--for", f"vm:{host}", "--json").object
        for host in ("h1", "h2")
    ]
    told = run(up, "drain.py", "h1")
    assert re.fullmatch(
        rf"{granted[0]['lease']} of vm:h1 would end: h1/pci/0000:00:04\.0\ndrained: \['h1'\]\n", told
    ), told
    for each in granted:
        assert leasehold(up.data, "release", each["lease"], "--token", str(each["token"])).code == 0


def test_moving(stage: tuple[RunningUp, PaperHosts]) -> None:
    """The lease at the target counts, with a token of its own, and the one at the source is over."""
    told = run(stage[0], "moving.py", "h1", "h2", UUID)
    assert re.fullmatch(r"L(\d+) holds h2/pci/0000:00:01\.0 for it\nL\1 counts, with token \d+\n", told), told
    assert living(stage[0]) == []
