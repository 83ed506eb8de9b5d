"""Three servers in a process of their own, shared by all tests of a run that ask for them; each makes its streams anew.
They start with the first that asks, and end with the run.

Loaded as a plugin by `tests/conftest.py`.
"""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.tree import ROOT

_STOP_S = 20


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Where three servers are reached, which hold streams of earlier tests: see `cluster.fresh_streams`."""
    from tests.support.servers import TESTER  # noqa: PLC0415 - whatever is broken there, other tests can be run

    folder = tmp_path_factory.mktemp("cluster")
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.cluster", str(folder), TESTER.user.public_key],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    # It ends when its standard input does, so with us at the latest.
    with process:
        assert process.stdin is not None and process.stdout is not None
        urls = process.stdout.readline().split()
        assert urls, "the cluster did not start"
        yield urls
        process.stdin.close()
        assert process.wait(_STOP_S) == 0
