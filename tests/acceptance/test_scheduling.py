"""Asking for what is needed, from a terminal: waiting with progress, reasons, drains, quotas, moving on."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.commands import Commands
from tests.support.paper_hosts import PaperHosts, card, paper_hosts
from tests.support.running import RunningUp, running_up

CARDS = [card(slot, numa=slot % 2) for slot in range(1, 5)]
"""Slots 1 and 3 are near NUMA node 1, 2 and 4 near node 0."""
SELECT = 'device.pci.class == "0302"'
UUID = "c0ffee00-0000-4000-8000-000000000009"


class Said(NamedTuple):
    """What a command has said."""

    code: int
    out: str
    err: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The objects that it printed, one a line."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def object(self) -> dict[str, Any]:
        """The one object that it printed."""
        (found,) = self.objects
        return found


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningUp, PaperHosts]]:
    """Three hosts with four cards each."""
    with (
        running_up(tmp_path_factory.mktemp("up") / "data") as up,
        paper_hosts(up, {f"h{number}": list(CARDS) for number in (1, 2, 3)}) as hosts,
    ):
        yield up, hosts


class Terminal:
    """Where commands are typed: most of them within this process."""

    def __init__(self, data: Path, commands: Commands) -> None:
        self.data = data
        self._commands = commands

    def ask(self, *arguments: str) -> Said:
        """A command of ours."""
        return Said(*self._commands.run(*arguments))


@pytest.fixture
def up(
    stage: tuple[RunningUp, PaperHosts], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Terminal]:
    """Nothing is leased at the end of a test, and nobody waits."""
    up = Terminal(stage[0].data, Commands(stage[0].data, monkeypatch, capsys))
    yield up
    for row in ask(up, "queue", "--json").objects:
        assert ask(up, "withdraw", row["queued"]).code == 0
    for row in ask(up, "leases", "--json").objects:
        assert ask(up, "release", row["lease"], "--token", str(row["token"])).code == 0


def ask(up: Terminal, *arguments: str) -> Said:
    """A command of ours."""
    return up.ask(*arguments)


def granted(up: Terminal, *arguments: str) -> dict[str, Any]:
    """A lease that is granted."""
    done = ask(up, "lease", *arguments, "--json")
    assert done.code == 0, done.out + done.err
    return done.object


def release(up: Terminal, lease: dict[str, Any]) -> None:
    """Give it back."""
    done = ask(up, "release", lease["lease"], "--token", str(lease["token"]))
    assert done.code == 0, done.err


@contextmanager
def waiting(up: Terminal, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A command that waits; what it says there can be read line by line."""
    # Whoever runs us in the background may have had us ignore Ctrl-C, and so whatever we start.
    process = subprocess.Popen(
        ["env", "--default-signal=INT", sys.executable, "-m", "leasehold", "lease", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "LEASEHOLD_DATA": str(up.data)},
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def next_line(process: "subprocess.Popen[str]") -> str:
    """The next line of progress."""
    assert process.stderr is not None
    return process.stderr.readline()


def test_waits_with_progress(up: Terminal) -> None:
    """Two cards of one NUMA node: it waits, says why and what is kept for it, and gets them when another releases."""
    others = [granted(up, f"{host}/pci/0000:00:0{slot}.0", "--for", f"vm:{host}-{slot}")
              for host in ("h1", "h2", "h3") for slot in (1, 2)]  # fmt: skip
    with waiting(up, "--select", SELECT, "--count", "2", "--same", "numa_node", "--wait", "--for", "job:2") as process:
        told = next_line(process)
        assert re.match(r"Q\d+ waits, next in turn; kept for it: h1/pci/.*; not yet: ", told), told
        row = ask(up, "queue", "--json").object
        assert (row["holder"], row["place"], row["ahead"]) == ("job:2", 1, 0)
        release(up, others[0])
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert "h1/pci/0000:00:01.0, h1/pci/0000:00:03.0 for job:2" in out, out


def test_explained(up: Terminal) -> None:
    """A refusal, and `explain` of its request, name the rule and who holds what was looked at."""
    for host in ("h1", "h2", "h3"):
        granted(up, f"{host}/pci/0000:00:01.0", f"{host}/pci/0000:00:02.0", "--for", f"vm:{host}")
    refused = ask(up, "lease", "--select", SELECT, "--count", "2", "--same", "numa_node", "--for", "job:3",
                  "--request-id", "told")  # fmt: skip
    assert refused.code == 3
    explained = ask(up, "explain", "told")
    assert explained.code == 0, explained.err
    for text in (refused.err, explained.out):
        assert "constraint_unmet" in text, text
        assert "vm:h" in text, text
        assert "12 devices looked at" in text, text


def test_taken_back_with_ctrl_c(up: Terminal) -> None:
    """Whoever stops waiting waits no more in the ledger either."""
    granted(up, "--select", SELECT, "--all", "--for", "all")
    with waiting(up, "--select", SELECT, "--wait", "--for", "job:4") as process:
        assert "waits" in next_line(process)
        assert len(ask(up, "queue", "--json").objects) == 1
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == 130
    assert ask(up, "queue", "--json").objects == []


def test_waits_by_itself(up: Terminal) -> None:
    """With --no-follow it says its place; asked again it says how it stands; withdrawn, it waits no more."""
    granted(up, "--select", SELECT, "--all", "--for", "all")
    asked = ("lease", "--select", SELECT, "--wait", "1h", "--no-follow", "--for", "job:5", "--request-id", "later")
    first = ask(up, *asked, "--json")
    assert first.code == 0, first.err
    assert first.object["outcome"] == "queued"
    again = ask(up, *asked, "--json").object
    assert again["queued"] == first.object["queued"]
    assert ask(up, "withdraw", first.object["queued"]).code == 0
    refused = ask(up, *asked)
    assert refused.code == 3
    assert "withdrawn" in refused.err


def test_taken_away_by_an_operator(up: Terminal) -> None:
    """A request of anybody's that waits ends by an operator's word, with his reason."""
    granted(up, "--select", SELECT, "--all", "--for", "all")
    asked = ("lease", "--select", SELECT, "--wait", "1h", "--no-follow", "--for", "job:6", "--request-id", "never")
    place = ask(up, *asked, "--json").object["queued"]
    assert ask(up, "revoke", place, "--reason", "not tonight").code == 0
    assert ask(up, "queue", "--json").objects == []
    refused = ask(up, *asked)
    assert refused.code == 3
    assert "not tonight" in refused.err


def test_drain_preview_is_exact(up: Terminal) -> None:
    """What the preview lists is what ends then: not the lease that tolerates it, not those of other hosts."""
    hit = granted(up, "h1/pci/0000:00:01.0", "--for", "vm:hit")
    across = granted(up, "h1/pci/0000:00:02.0", "h2/pci/0000:00:02.0", "--for", "vm:across")
    stays = granted(up, "h1/pci/0000:00:03.0", "--for", "vm:stays", "--tolerate", "drain")
    other = granted(up, "h2/pci/0000:00:03.0", "--for", "vm:other")
    drain = ("drain", "--host", "h1", "--reason", "new firmware")
    preview = ask(up, *drain, "--dry-run")
    assert preview.code == 0, preview.err
    for lease, is_hit in ((hit, True), (across, True), (stays, False), (other, False)):
        assert (f"{lease['lease']} " in preview.out) == is_hit, preview.out
    before = {row["lease"] for row in ask(up, "leases", "--json").objects}
    named = {row["lease"] for row in ask(up, *drain, "--dry-run", "--json").object["broken"]}
    assert ask(up, *drain).code == 0
    after = {row["lease"] for row in ask(up, "leases", "--json").objects}
    assert before - after == named == {hit["lease"], across["lease"]}
    assert "drain" in ask(up, "taints").out
    refused = ask(up, "lease", "h1/pci/0000:00:04.0", "--for", "vm:new")
    assert refused.code == 3
    assert "device_tainted" in refused.err
    assert ask(up, "untaint", "drain", "--host", "h1").code == 0


def test_classes_and_what_is_free(up: Terminal) -> None:
    """A class is made, its free devices are counted and listed, and one is leased by it."""
    done = ask(up, "class", "add", "gpu", SELECT)
    assert done.code == 0, done.err
    granted(up, "h1/pci/0000:00:01.0", "--for", "vm:one")
    row = next(row for row in ask(up, "free", "--json").objects if row["name"] == "gpu")
    assert (row["devices"], row["free"], row["leased"]) == (12, 11, 1)
    free = [each["device"] for each in ask(up, "free", "gpu", "--json").objects]
    assert len(free) == 11
    lease = granted(up, "--class", "gpu", "--for", "job:6")
    assert lease["devices"] == [free[0]]
    assert ask(up, "class", "remove", "gpu").code == 0


def test_quota(up: Terminal, tmp_path: Path) -> None:
    """A tenant gets what its quota allows, and is told how much that is."""
    key = tmp_path / "nightly.json"
    assert ask(up, "credentials", "add", "scheduler", "nightly", "--out", str(key)).code == 0
    assert ask(up, "quota", "set", "nightly", "2").code == 0
    mine = ("--select", SELECT, "--count", "2", "--for", "job:7", "--json", "--credentials", str(key))
    lease = ask(up, "lease", *mine).object
    refused = ask(up, "lease", "--select", SELECT, "--for", "job:8", "--credentials", str(key))
    assert refused.code == 3
    assert "quota_exceeded" in refused.err
    row = ask(up, "quota", "list", "--json").object
    assert (row["tenant"], row["devices"], row["devices_max"]) == ("nightly", 2, 2)
    done = ask(up, "release", lease["lease"], "--token", str(lease["token"]), "--credentials", str(key))
    assert done.code == 0, done.err
    assert ask(up, "quota", "set", "nightly", "none").code == 0


def test_transfer(up: Terminal) -> None:
    """Behind a transfer the old token opens nothing, and the new one does."""
    lease = granted(up, "h1/pci/0000:00:01.0", "--for", "vm:before")
    moved = ask(up, "transfer", lease["lease"], "--token", str(lease["token"]), "--to", "vm:behind", "--json").object
    assert moved["lease"] == lease["lease"]
    assert moved["token"] > lease["token"]
    refused = ask(up, "renew", lease["lease"], "--token", str(lease["token"]))
    assert refused.code == 3
    assert "token_stale" in refused.err
    release(up, moved)


def test_moved_in_two_steps(up: Terminal) -> None:
    """A card at the target is held for the domain; with the switch that lease counts, and the other one ends."""
    source = granted(up, "h1/pci/0000:00:01.0", "--for", "vm:web", "--domain", UUID)
    done = ask(up, "reserve", source["lease"], "--token", str(source["token"]), "--select", SELECT, "--host", "h2",
               "--json")  # fmt: skip
    assert done.code == 0, done.err
    there = done.object
    assert there["reserved_for"] == source["lease"]
    switched = ask(up, "switch", there["lease"], "--token", str(there["token"]), "--json")
    assert switched.code == 0, switched.err
    assert switched.object["token"] > there["token"]
    assert [row["lease"] for row in ask(up, "leases", "--json").objects] == [there["lease"]]
    release(up, switched.object)


def test_nothing_is_done_by_a_dry_run(up: Terminal) -> None:
    """Whatever is asked for: it is told how it would be decided, with the same exit code; the log is as before."""
    lease = granted(up, "h1/pci/0000:00:01.0", "--for", "vm:web")
    token = ("--token", str(lease["token"]))
    before = ask(up, "status", "--json").object["sequence"]
    for arguments, code in (
        (("lease", "--select", SELECT, "--count", "2", "--for", "job:9"), 0),
        (("lease", "h1/pci/0000:00:01.0", "--for", "job:9"), 3),
        (("renew", lease["lease"], *token), 0),
        (("release", lease["lease"], *token), 0),
        (("transfer", lease["lease"], *token, "--to", "x"), 0),
        (("cordon", "--host", "h1", "--reason", "x"), 0),
        (("class", "add", "gpu", SELECT), 0),
        (("quota", "set", "nobody", "1"), 0),
        (("revoke", lease["lease"], "--reason", "x"), 0),
        (("withdraw", "Q4711"), 3),
    ):
        done = ask(up, *arguments, "--dry-run")
        assert done.code == code, (arguments, done.out, done.err)
        assert "nothing is done" in done.err, (arguments, done.err)
    assert ask(up, "status", "--json").object["sequence"] == before


def test_bad_selectors_are_pointed_at(up: Terminal) -> None:
    """A selector that cannot be read is no request: the place is shown, and what would be right."""
    for selector in ('device.pci.class = "0302"', "device.nosuch == 1", "device.numa_node == 0 &&", "size("):
        done = ask(up, "lease", "--select", selector, "--for", "job:10")
        assert done.code == 2, (selector, done.err)
        assert "select" in done.err
        assert "^" in done.err, done.err
