"""The long run on three servers: `python -m tests.cluster [ROUNDS [SEED]]`; it says what came of it."""

import asyncio
import sys
import tempfile
import time
from pathlib import Path

from tests.cluster.faults import all_killed, judged, leader_cut_off, leader_killed, leader_stepped_down

ROUND = (leader_killed, leader_stepped_down, leader_killed, leader_cut_off, leader_killed, all_killed)


def main() -> int:
    """Exit code 1 if anything answered was lost or doubled, or anything else is wrong."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns()
    with tempfile.TemporaryDirectory(prefix="leasehold-cluster-") as folder:
        _, problems = asyncio.run(judged(Path(folder), ROUND * rounds, seed))
    print(*(problems or ["nothing is wrong"]), sep="\n")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
