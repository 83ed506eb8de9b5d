"""Three servers that keep one log, under load: what was answered is kept, whoever of them dies."""

import time
from pathlib import Path

from tests.cluster.faults import all_killed, judged, leader_killed, leader_stepped_down
from tests.cluster.running import WORKERS

WORD_WITHIN_S = 1.1
"""A second, and what a busy machine takes to tell it."""


async def test_what_was_answered_is_kept_whoever_dies(tmp_path: Path) -> None:
    """With the leader stepped down, killed, and all three killed under load nothing answered is lost or doubled.

    Each device's history is linearizable, the ledger decides the same again, and who asks in a gap hears so in time.
    """
    faults = [leader_stepped_down, leader_killed, all_killed]
    figures, problems = await judged(tmp_path, faults, seed=time.time_ns())
    assert not problems, "\n".join(problems)
    assert figures.answered == figures.asked
    assert (figures.lost, figures.doubled) == (0, 0)
    # What is on its way when a server dies is lost with it, and the client itself gives it up after 1.2 s.
    assert figures.silent <= WORKERS * len(faults)
    assert figures.longest_wait_s < WORD_WITHIN_S
