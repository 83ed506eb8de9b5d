"""The feed's fold on disk: as it is behind some record, so that not all of the log has to be folded again."""

from typing import Final

import msgspec

from leasehold.events import codec
from leasehold.events.errors import CorruptSnapshotError
from leasehold.projections.feeding import Feeding, Lease, Order, Refused
from leasehold.projections.rows import Head

FEED_VERSION: Final = 5
"""Raised when the same log would be told otherwise; snapshots of another version are built anew."""


class _Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    version: int
    head: Head
    last: tuple[int, int]
    devices: dict[str, int]
    leases: list[tuple[int, Lease]]
    sharers: dict[str, tuple[int, ...]] = {}
    queue: list[tuple[int, str]] = []
    refusals: list[tuple[int, Refused]]
    orders: list[tuple[int, Order]] = []
    previous: dict[str, int]


_snapshot_decoder: Final = msgspec.json.Decoder(_Snapshot)


def encode_feeding(fold: Feeding) -> bytes:
    """The fold as it is now; equal folds are equal bytes."""
    snapshot = _Snapshot(
        version=FEED_VERSION,
        head=fold.head,
        last=fold.last,
        devices=fold.devices,
        leases=sorted(fold.leases.items()),
        sharers=fold.sharers,
        queue=sorted(fold.queue.items()),
        refusals=list(fold.refusals.items()),
        orders=sorted(pair for orders in fold.orders.values() for pair in orders.items()),
        previous=fold.previous,
    )
    return codec.encode(snapshot)


def decode_feeding(body: bytes) -> Feeding | None:
    """The fold again; `None`, if another version has written it.

    Raises:
        CorruptSnapshotError: it is none.
    """
    try:
        snapshot = _snapshot_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptSnapshotError(f"not a snapshot of the feed ({error})") from error
    if snapshot.version != FEED_VERSION:
        return None
    fold = Feeding()
    fold.head, fold.last = snapshot.head, snapshot.last
    fold.devices, fold.previous = snapshot.devices, snapshot.previous
    fold.sharers, fold.queue = snapshot.sharers, dict(snapshot.queue)
    fold.leases, fold.refusals = dict(snapshot.leases), dict(snapshot.refusals)
    for order, row in snapshot.orders:
        fold.orders.setdefault(row.host, {})[order] = row
    return fold
