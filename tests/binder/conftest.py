"""Fixtures of these tests."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from leasehold.services.binder import steps
from tests.binder.bench import Bench
from tests.binder.kernel import Kernel


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder of a short name: sockets have no room for long ones."""
    with tempfile.TemporaryDirectory(prefix="lh") as folder:
        yield Path(folder)


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    """An imitated machine of its own."""
    kernel = Kernel(tmp_path / "machine")
    yield kernel
    kernel.close()


@pytest.fixture
def bench(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """That machine, and what a binder does with it: it waits less long than in earnest for what does not come."""
    monkeypatch.setattr(steps, "SETTLE_S", 0.5)
    found = Bench(kernel)
    monkeypatch.setattr(steps, "time", SimpleNamespace(monotonic=found.monotonic))
    return found
