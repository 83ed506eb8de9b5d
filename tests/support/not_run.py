"""How a test says that it cannot run here. It never does so silently: the run ends with a list of all that did not run.

Loaded as a plugin by `tests/conftest.py`.
"""

from typing import NoReturn

import pytest

_PREFIX = "NOT RUN: "


def not_run(reason: str) -> NoReturn:
    """End this test, or this module's collection, because something that it needs is not here; `reason` says what."""
    pytest.skip(f"{_PREFIX}{reason}", allow_module_level=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name each test that did not run, and why, whatever kept it from running."""
    reports = terminalreporter.stats.get("skipped", [])
    if not reports:
        return
    terminalreporter.section("NOT RUN", bold=True)
    for line in sorted(f"{report.nodeid}: {_reason(report)}" for report in reports):
        terminalreporter.write_line(f"NOT RUN {line}")


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    longrepr = report.longrepr
    text = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
    return text.removeprefix("Skipped: ").removeprefix(_PREFIX)
