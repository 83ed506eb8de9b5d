"""A test that cannot run here is named in the summary of the run, with the reason."""

import subprocess
import sys
from pathlib import Path

CASES = """
import pytest
from tests.support.not_run import not_run

def test_runs() -> None:
    pass

def test_needs_something() -> None:
    not_run("no kernel module vfio")

@pytest.mark.skip(reason="left out by hand")
def test_left_out() -> None:
    pass
"""
MODULE = """
from tests.support.not_run import not_run

not_run("no tools at all")
"""


def test_what_did_not_run_is_named(tmp_path: Path) -> None:
    """Tests that call `not_run`, modules that do, and tests skipped by other means all stand under NOT RUN."""
    (tmp_path / "test_cases.py").write_text(CASES)
    (tmp_path / "test_module.py").write_text(MODULE)
    command = [sys.executable, "-m", "pytest", "-p", "tests.support.not_run", "--rootdir", str(tmp_path)]
    root = Path(__file__).parents[1]
    ran = subprocess.run(
        [*command, "-c", "/dev/null", "-p", "no:cacheprovider", "--import-mode=importlib", str(tmp_path)],
        cwd=root, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    lines = ran.stdout.splitlines()
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert any("= NOT RUN =" in line for line in lines), ran.stdout
    named = [line for line in lines if line.startswith("NOT RUN ")]
    assert [line.rpartition("/")[2].split("::", 1)[-1].removeprefix("NOT RUN ") for line in named] == [
        "test_left_out: left out by hand",
        "test_needs_something: no kernel module vfio",
        "test_module.py: no tools at all",
    ], ran.stdout
    assert "1 passed, 3 skipped" in lines[-1]
