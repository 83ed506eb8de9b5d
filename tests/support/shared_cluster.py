"""Three servers in a process of their own, shared by all tests of one run that ask for them; each test makes its streams
anew. They start with the first that asks, and end with the run.

Loaded as a plugin by `tests/conftest.py`.
"""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from leasehold.services.lifeline import tied_to_us
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
        preexec_fn=tied_to_us(),
    )
    with process:
        assert process.stdin is not None and process.stdout is not None
        urls = process.stdout.readline().split()
        assert urls, "the cluster did not start"
        yield urls
        process.stdin.close()
        assert process.wait(_STOP_S) == 0
