"""Fixtures of these tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.creator.kernel import Kernel


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    """An imitated machine of its own."""
    kernel = Kernel(tmp_path / "machine")
    yield kernel
    kernel.close()
