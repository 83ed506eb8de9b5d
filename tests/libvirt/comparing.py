"""Two lists of node devices held against each other, field by field.

Devices are the same if their sysfs paths are, so that a name that differs shows as a difference of that field.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Final
from xml.etree import ElementTree as ET

import msgspec

COMPUTER: Final = "computer"
"""Stands for the path of the device that has none."""
LISTED: Final = "device"
"""The field that says whether a device is listed at all, by its name."""
_TELLING: Final = frozenset({"type", "validity", "access"})
"""Attributes that say which of several elements it is."""

Facts = dict[str, tuple[str, ...]]
"""What is said of a device: values by field, sorted; `parent`, `link@speed`, `vpd/fields[readonly]/part_number`."""


class Difference(msgspec.Struct, frozen=True):
    """A field of a device of which both do not say the same."""

    machine: str
    path: str
    field: str
    theirs: tuple[str, ...]
    ours: tuple[str, ...]

    def __str__(self) -> str:
        """One line."""
        return f"{self.machine}: {self.path}: {self.field}: libvirt {_said(self.theirs)}, ours {_said(self.ours)}"


def _said(values: tuple[str, ...]) -> str:
    return " and ".join(map(repr, values)) or "nothing"


def facts_of(xml: str) -> Facts:
    """A device's XML as facts. Order is not a fact, as libvirt lists many things in the order of a directory."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for element in ET.fromstring(xml):
        if element.tag == "capability":
            found["capability"].append(element.get("type", ""))
            for inner in element:
                _gather(found, inner, "")
        else:
            _gather(found, element, "")
    return {field: tuple(sorted(values)) for field, values in found.items()}


def _gather(found: dict[str, list[str]], element: ET.Element, above: str) -> None:
    if element.tag == "capability":
        field = above + element.get("type", "")
        found[field].append("")
    else:
        which = [element.get(name, "") for name in element.attrib if name in _TELLING]
        if element.tag == "type" and len(element):
            which.append(element.get("id", ""))
        field = above + element.tag + "".join(f"[{each}]" for each in which)
    if element.tag == "address" and element.attrib:
        found[field].append(" ".join(f"{name}={value}" for name, value in sorted(element.attrib.items())))
        return
    for name, value in element.attrib.items():
        if name not in _TELLING:
            found[f"{field}@{name}"].append(value)
    for inner in element:
        _gather(found, inner, f"{field}/")
    text = (element.text or "").strip()
    if text or (not len(element) and not element.attrib):
        found[field].append(text)


def differences(machine: str, theirs: Mapping[str, str], ours: Mapping[str, str]) -> Iterator[Difference]:
    """All differences between the XML of devices, by name, that libvirt shows and that we show."""
    their_facts, our_facts = _by_path(theirs), _by_path(ours)
    for path in sorted(their_facts.keys() | our_facts.keys()):
        said, told = their_facts.get(path), our_facts.get(path)
        if said is None or told is None:
            yield Difference(machine, path, LISTED, *((each or {}).get("name", ()) for each in (said, told)))
            continue
        for field in sorted(said.keys() | told.keys()):
            if said.get(field, ()) != told.get(field, ()):
                yield Difference(machine, path, field, said.get(field, ()), told.get(field, ()))


def _by_path(devices: Mapping[str, str]) -> dict[str, Facts]:
    listed = [facts_of(xml) for xml in devices.values()]
    found = {facts.get("path", (COMPUTER,))[0]: facts for facts in listed}
    assert len(found) == len(listed), "two devices have one path"
    return found
