"""What the scenarios share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from leasehold.services.binder import door, steps
from tests.hostdevs.cluster import Cluster
from tests.hostdevs.hosts import Host


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Without hosts; its doors have the ledger's clock, and no driver here is late."""
    cluster = Cluster(tmp_path)
    monkeypatch.setattr(steps, "SETTLE_S", 0.1)
    monkeypatch.setattr(door, "_now_ms", cluster.door_ms)
    yield cluster
    cluster.close()


@pytest.fixture
def host(cluster: Cluster) -> Host:
    """One with a binder, whose hypervisor is QEMU."""
    return cluster.add("h1")
