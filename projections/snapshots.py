"""The state as bytes, and back. Rows are sorted, so equal states are equal bytes, whatever way led to them."""

import heapq
from collections.abc import Iterator
from itertools import islice
from operator import itemgetter
from typing import Any, Final

import msgspec

from leasehold.events import codec
from leasehold.events.errors import CorruptSnapshotError
from leasehold.events.identities import DeviceId, DomainId, HostName, Principal, RequestKey
from leasehold.projections.rows import (
    AnswerState,
    ClassState,
    DeviceState,
    DomainState,
    Fading,
    Head,
    HostState,
    LeaseState,
    OrderState,
    PrincipalState,
    QueuedState,
    QuotaState,
    RecentRefusal,
)
from leasehold.projections.state import FOLD_VERSION, State


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """All rows of a state."""

    fold_version: int
    head: Head
    hosts: list[tuple[HostName, HostState]]
    devices: list[tuple[DeviceId, DeviceState]]
    leases: list[tuple[int, LeaseState]]
    answers: list[tuple[RequestKey, AnswerState]]
    principals: list[tuple[Principal, PrincipalState]]
    fading: list[tuple[tuple[Principal, int], Fading]]
    refusals: list[tuple[int, RecentRefusal]]
    orders: list[tuple[int, OrderState]]
    domains: list[tuple[DomainId, DomainState]]
    queue: list[tuple[int, QueuedState]]
    stirred: list[tuple[int, tuple[str, ...]]]
    classes: list[tuple[str, ClassState]]
    quotas: list[tuple[tuple[Principal, str], QuotaState]]


_decoder: Final = msgspec.json.Decoder(Snapshot)
_TABLES: Final = tuple(sorted(set(Snapshot.__struct_fields__) - {"fold_version", "head"}))
SORTED_AT_ONCE: Final = 10_000
ENCODED_AT_ONCE: Final = 1_000
"""Rows between two pieces of an encoded state."""


class Frozen(msgspec.Struct, frozen=True):
    """The tables of a state at its `head`: keys and rows, by the table's name. Rows never change."""

    head: Head
    tables: dict[str, tuple[list[Any], list[Any]]]


def freeze(state: State) -> Frozen:
    """The state as it is now, while it moves on; nothing may be in flight. Only copies of the tables are taken."""
    assert not state.journal.is_open
    tables = {name: getattr(state, name) for name in _TABLES}
    return Frozen(state.head, {name: (list(table), list(table.values())) for name, table in tables.items()})


def encode_pieces(frozen: Frozen) -> Iterator[bytes]:
    """The encoded state in pieces, some of them empty: between two lie a few milliseconds' work at most."""
    opening = b"{"
    for name in sorted(Snapshot.__struct_fields__):
        yield b'%s"%s":' % (opening, name.encode())
        opening = b","
        if name == "head":
            yield codec.encode(frozen.head)
        elif name == "fold_version":
            yield codec.encode(FOLD_VERSION)
        else:
            yield from _encode_table(*frozen.tables[name])
    yield b"}"


def _encode_table(keys: list[Any], rows: list[Any]) -> Iterator[bytes]:
    runs = []
    for start in range(0, len(keys), SORTED_AT_ONCE):
        end = start + SORTED_AT_ONCE
        runs.append(sorted(zip(keys[start:end], rows[start:end], strict=True), key=itemgetter(0)))
        yield b""
    ordered = heapq.merge(*runs, key=itemgetter(0)) if len(runs) > 1 else iter(runs[0] if runs else ())
    opening = b"["
    while some := list(islice(ordered, ENCODED_AT_ONCE)):
        yield opening + codec.encode(some)[1:-1]
        opening = b","
    yield b"]" if opening == b"," else b"[]"


def encode_state(state: State) -> bytes:
    """The state as bytes; nothing may be in flight."""
    return b"".join(encode_pieces(freeze(state)))


def decode_state(body: bytes) -> State | None:
    """The state that `encode_state` wrote; `None` if another version of the fold wrote it.

    Raises:
        CorruptSnapshotError: these bytes are no snapshot.
    """
    try:
        version = msgspec.json.decode(body, type=_Version).fold_version
        if version != FOLD_VERSION:
            return None
        snapshot = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptSnapshotError(f"not a snapshot ({error})") from error
    return _restore(snapshot)


class _Version(msgspec.Struct):
    fold_version: int


def _restore(snapshot: Snapshot) -> State:
    state = State()
    state.set_head(snapshot.head)
    state.hosts.update(snapshot.hosts)
    state.devices.update(snapshot.devices)
    state.leases.update(snapshot.leases)
    state.answers.update(snapshot.answers)
    state.principals.update(snapshot.principals)
    state.fading.update(snapshot.fading)
    state.refusals.update(snapshot.refusals)
    state.orders.update(snapshot.orders)
    state.queue.update(snapshot.queue)
    state.stirred.update(snapshot.stirred)
    state.classes.update(snapshot.classes)
    state.quotas.update(snapshot.quotas)
    state.domains.update(snapshot.domains)
    state.index_anew()
    return state
