"""A small scripted day; `make day` is the whole one."""

import random
from pathlib import Path

import pytest

from tests.day.__main__ import whole_day

EVENTS = 2_500
INSTANTS = 100


@pytest.mark.timeout(300)  # a quarter of a minute; much longer only where others use the machine, too
async def test_a_small_day(tmp_path: Path) -> None:
    """Every part is killed under load, and then all copies agree, nothing that was answered is lost or doubled, the
    past is what brute force says it was, the feed told each event once, every message is as it is described, and
    deciding again finds nothing but the decision that was changed.
    """
    seed = random.SystemRandom().randrange(2**32)
    print("seed", seed)
    outcome = await whole_day(tmp_path, events=EVENTS, instants=INSTANTS, seed=seed, devices=120, expiries=False)
    print(outcome)
    assert outcome.problems == []
