"""The table of libvirt's scenarios: each row has its test, and the document has each row."""

import importlib
from pathlib import Path

import pytest

from tests.hostdevs.table import BEGIN, DOCUMENT, MODULES, SCENARIOS, SECTIONS, tables
from tests.support.tree import ROOT


@pytest.fixture(autouse=True)
def rows() -> None:
    for name in MODULES:
        importlib.import_module(f"tests.hostdevs.{name}")


def test_the_document_has_the_same_tables() -> None:
    """docs/libvirt-scenarios.md is what `python -m tests.hostdevs` writes."""
    _, found, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    assert found
    assert rest == f"\n{tables()}"


def test_every_section_has_rows() -> None:
    """Nothing is left out silently, and no row is there twice."""
    assert {each.section for each in SCENARIOS} == SECTIONS.keys()
    assert len({each.what for each in SCENARIOS}) == len({each.test for each in SCENARIOS}) == len(SCENARIOS)
    assert len([each for each in SCENARIOS if each.is_wrong]) > 15


def test_every_scenario_is_in_a_listed_module() -> None:
    """No module of scenarios is forgotten."""
    folder = ROOT / "tests/hostdevs"
    marked = {path.stem for path in folder.glob("test_*.py") if "\n@scenario(" in path.read_text(encoding="utf-8")}
    assert marked == set(MODULES)


@pytest.mark.parametrize(
    "named",
    [
        "detached", "managed device", "unmanaged", "managed and unmanaged", "second domain", "same domain",
        "driver asks",
        "stranger", "restarts", "one device of several", "IOMMU group", "not in sysfs", "identical twins",
        "another number", "number that a leased one had", "virtual functions is held", "controller while a stick",
        "at once", "reboots", "without asking", "driver is changed by hand", "comes back", "comes to its place",
    ],
)  # fmt: skip
def test_what_must_be_there(named: str) -> None:
    """The scenarios that this is about, by words of theirs."""
    assert [each.what for each in SCENARIOS if named in each.what]


def test_where_it_lies() -> None:
    """The document names tests that are there."""
    for each in SCENARIOS:
        name, _, test = each.test.partition("::")
        assert f"def {test}(" in (Path(__file__).parent / name).read_text(encoding="utf-8")
