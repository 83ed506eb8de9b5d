"""xend as a source: the suite over both of its protocols, before the stand-in; and what it says in odd cases."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.poller.conformance import SourceSuite
from tests.poller.xenstage import XenStage


@pytest.fixture(params=["xmlrpc", "unix"])
async def stage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[XenStage]:
    """One of them."""
    stage = XenStage(tmp_path, request.param)
    await stage.open()
    yield stage
    await stage.close()


class TestXend(SourceSuite):
    """Over XML-RPC and over HTTP."""
