"""Devices as a tree: each below its parent, for programs, tables and those who know it from virsh."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from leasehold.events.identities import COMPUTER
from leasehold.events.views import DeviceView


def tree(rows: list[DeviceView]) -> Iterator[tuple[DeviceView, int]]:
    """Each row with its depth, parents first; a row whose parent is not among them stands at the top."""
    known = {row.device for row in rows}
    below: dict[str, list[DeviceView]] = {}
    for row in rows:
        parent = f"{row.host}/{row.parent or COMPUTER}" if row.key != COMPUTER else ""
        below.setdefault(parent if parent in known else "", []).append(row)
    yielded: set[str] = set()
    # Behind the tops all rows once more: an agent may name parents in a circle, which has no top.
    waiting = [(row, 0) for row in reversed([*below.get("", []), *rows])]
    while waiting:
        row, depth = waiting.pop()
        if row.device not in yielded:
            yielded.add(row.device)
            yield row, depth
            waiting.extend((child, depth + 1) for child in reversed(below.get(row.device, [])))


def tree_lines(rows: Iterable[DeviceView]) -> Iterator[str]:
    """The devices of one host as `virsh nodedev-list --tree` draws them, to the blank: by name, below `computer`.

    What has its parent not among `rows` stands at the top; so does `computer`, which has none. Source: libvirt 9.0,
    `tools/vsh.c`, `vshTreePrintInternal`.
    """
    by_name = sorted(rows, key=lambda row: row.name)
    known = {row.name for row in by_name}
    below: dict[str, list[str]] = {}
    for row in by_name:
        below.setdefault(row.parent_name if row.parent_name in known else "", []).append(row.name)
    seen: set[str] = set()
    # Behind the tops all once more: an agent may name parents in a circle, which has no top.
    tops = [*below.get("", ()), *(row.name for row in by_name)]
    waiting = [_Branch(name, "", "", "") for name in reversed(tops)]
    while waiting:
        branch = waiting.pop()
        if branch.name in seen:
            continue
        seen.add(branch.name)
        yield f"{branch.indent}{branch.mark}{branch.name}"
        indent = branch.indent + branch.beside
        children = [child for child in below.get(branch.name, ()) if child not in seen]
        if children:
            yield f"{indent}  |"
            last = children[-1]
            some = (_Branch(child, f"{indent}  ", "+- ", "  " if child == last else "| ") for child in children)
            waiting += reversed(list(some))
        elif branch.beside != "| ":
            yield indent


class _Branch(NamedTuple):
    """A device to be drawn: behind `indent` and `mark`; `beside` what is below it goes on the line to its siblings."""

    name: str
    indent: str
    mark: str
    beside: str
