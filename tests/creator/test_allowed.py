"""A creator runs only where somebody lets it."""

import time
from pathlib import Path
from typing import Final

from leasehold.services.creator.agent import LedgerClock
from leasehold.services.up import Options, Up, weaker_promises
from tests.support.running import HOST, leasehold, running_up

NOBODYS: Final = ("--parent-wwnn", "5525400fffffff00", "--parent-wwpn", "5525400fffffff01")
"""No HBA of any machine has these names: nothing is made here."""


def test_up_starts_none_by_itself(tmp_path: Path) -> None:
    """Without `--allow-create` no creator is among the processes, and with it that is named as a weaker promise."""
    options = Options(data=tmp_path, cluster="test", host="h1")
    allowed = Options(data=tmp_path, cluster="test", host="h1", allow_create=True)
    assert "creator" not in Up(options, print).titles
    assert "creator" in Up(allowed, print).titles
    told = set(weaker_promises(allowed)) - set(weaker_promises(options))
    assert [text for text in told if "made and destroyed on this host" in text] == list(told) != []


def test_up_starts_one_where_it_may(tmp_path: Path) -> None:
    """`up --allow-create` has a creator that the log hears: an order is judged by its parent, not by the host."""
    with running_up(tmp_path / "data", "--allow-create") as up:
        assert "creator" in up.children()
        give_up_s = time.monotonic() + 30
        while True:
            refused = leasehold(up.data, "nodedev", "create-vport", "--host", HOST, *NOBODYS, "--json")
            assert refused.code == 3, refused.err
            if refused.object["code"] != "host_forbids":
                break
            assert time.monotonic() < give_up_s, refused.out
        assert refused.object["code"] == "device_unknown", refused.out


def test_the_time_of_the_log() -> None:
    """It is that of the event which came fastest; what comes late or is told anew does not set it back."""
    clock = LedgerClock()
    assert abs(clock.now_ns() - time.time_ns()) < 10**9
    day_ns = 86_400 * 10**9
    clock.heard(day_ns)
    first_ns = clock.now_ns()
    assert day_ns <= first_ns < day_ns + 10**9
    clock.heard(day_ns - 5 * 10**9)
    assert clock.now_ns() >= first_ns
    clock.heard(2 * day_ns)
    assert clock.now_ns() >= 2 * day_ns
