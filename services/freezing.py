"""A state as it is now, to be encoded bit by bit while it moves on.

Rows are immutable, so copies of the tables make a picture that stays; only the copies are taken at once. The bytes are
those of `snapshots.encode_state`, which does the same in one go.
"""

import asyncio
import heapq
from collections.abc import Iterator
from itertools import islice
from operator import itemgetter
from typing import Any, Final

import msgspec

from leasehold.events import codec
from leasehold.projections.snapshots import Snapshot
from leasehold.projections.state import FOLD_VERSION, Head, State

SORTED_AT_ONCE: Final = 10_000
ENCODED_AT_ONCE: Final = 1_000
"""Rows between two looks at what else the loop has to do: a few milliseconds' work each."""
_TABLES: Final = tuple(sorted(set(Snapshot.__struct_fields__) - {"fold_version", "head"}))


class Frozen(msgspec.Struct, frozen=True):
    """The tables of a state at its `head`: keys and rows, by the table's name."""

    head: Head
    tables: dict[str, tuple[list[Any], list[Any]]]


def freeze(state: State) -> Frozen:
    """The state as it is now; nothing may be in flight."""
    assert not state.journal.is_open
    tables = {name: getattr(state, name) for name in _TABLES}
    return Frozen(state.head, {name: (list(table), list(table.values())) for name, table in tables.items()})


async def encode_gently(frozen: Frozen) -> list[bytes]:
    """What `snapshots.encode_state` makes of the state, in pieces, with pauses for the rest of the loop."""
    pieces = [b"{"]
    for name in sorted(Snapshot.__struct_fields__):
        pieces.append(b'%s"%s":' % (b"," if len(pieces) > 1 else b"", name.encode()))
        if name == "head":
            pieces.append(codec.encode(frozen.head))
        elif name == "fold_version":
            pieces.append(codec.encode(FOLD_VERSION))
        else:
            await _encode_table(pieces, *frozen.tables[name])
    pieces.append(b"}")
    return pieces


async def _encode_table(pieces: list[bytes], keys: list[Any], rows: list[Any]) -> None:
    ordered = await _in_order(keys, rows)
    opening = b"["
    while some := list(islice(ordered, ENCODED_AT_ONCE)):
        pieces.append(opening + codec.encode(some)[1:-1])
        opening = b","
        await asyncio.sleep(0)
    pieces.append(b"]" if opening == b"," else b"[]")


async def _in_order(keys: list[Any], rows: list[Any]) -> Iterator[tuple[Any, Any]]:
    runs = []
    for start in range(0, len(keys), SORTED_AT_ONCE):
        end = start + SORTED_AT_ONCE
        runs.append(sorted(zip(keys[start:end], rows[start:end], strict=True), key=itemgetter(0)))
        await asyncio.sleep(0)
    return heapq.merge(*runs, key=itemgetter(0))
