"""libvirt's scenarios, each with what libvirt makes of it, what we make of it, and the test that shows it.

docs/libvirt-scenarios.md holds the same table: `python -m tests.hostdevs` writes it, and a test compares.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar

from tests.support.tree import ROOT

DOCUMENT: Final = ROOT / "docs/libvirt-scenarios.md"
MODULES: Final = (
    "test_detach",
    "test_pci",
    "test_apart",
    "test_usb",
    "test_races",
    "test_lost",
    "test_past_the_ledger",
)
BEGIN: Final = "<!-- The tables are written by `python -m tests.hostdevs`. -->\n"
SECTIONS: Final = {
    "detach": "Detach, reattach, reset",
    "prepare": "Prepare for a domain, and give back",
    "apart": "What cannot be owned apart",
    "usb": "USB",
    "race": "Races",
    "lost": "Restarts, losses, reboots",
    "drift": "What happens past the ledger",
}

T = TypeVar("T", bound=Callable[..., Any])


class Scenario(NamedTuple):
    """One row."""

    section: str
    what: str
    libvirt: str
    here: str
    test: str
    """Where it is shown: `test_pci.py::test_…`."""
    is_wrong: bool
    """Whether libvirt gets it wrong: one device for two, a claim that nobody holds, or a lie."""

    @property
    def row(self) -> str:
        """As the document has it."""
        theirs = f"**{self.libvirt}**" if self.is_wrong else self.libvirt
        return f"| {self.what} | {theirs} | {self.here} | `{self.test}` |"


SCENARIOS: Final[list[Scenario]] = []


def scenario(section: str, what: str, *, libvirt: str, here: str, wrong: bool = False) -> Callable[[T], T]:
    """Marks a test as the one that shows this. `libvirt`: what libvirt 9.0 does; `wrong`: and should not."""
    assert section in SECTIONS

    def noted(test: T) -> T:
        name = f"{test.__module__.rpartition('.')[2]}.py::{test.__name__}"
        SCENARIOS.append(Scenario(section, what, libvirt, here, name, wrong))
        return test

    return noted


def tables() -> str:
    """All of them, as Markdown."""
    parts = []
    for section, title in SECTIONS.items():
        rows = "\n".join(each.row for each in SCENARIOS if each.section == section)
        parts.append(f"## {title}\n\n| scenario | libvirt 9.0 | here | test |\n|---|---|---|---|\n{rows}\n")
    return "\n".join(parts)
