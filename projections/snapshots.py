"""The state as bytes, and back. Rows are sorted, so equal states are equal bytes, whatever way led to them."""

from typing import Any, Final

import msgspec

from leasehold.events import codec
from leasehold.events.errors import CorruptSnapshotError
from leasehold.events.identities import DeviceId, HostName, Principal, RequestKey
from leasehold.projections.state import (
    FOLD_VERSION,
    AnswerState,
    DeviceState,
    Fading,
    Head,
    HostState,
    LeaseState,
    PrincipalState,
    RecentRefusal,
    State,
)


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


_decoder: Final = msgspec.json.Decoder(Snapshot)


def _rows(table: dict[Any, Any]) -> list[tuple[Any, Any]]:
    return sorted(table.items(), key=lambda row: row[0])


def encode_state(state: State) -> bytes:
    """The state as bytes; nothing may be in flight."""
    assert not state.journal.is_open
    snapshot = Snapshot(
        fold_version=FOLD_VERSION,
        head=state.head,
        hosts=_rows(state.hosts),
        devices=_rows(state.devices),
        leases=_rows(state.leases),
        answers=_rows(state.answers),
        principals=_rows(state.principals),
        fading=_rows(state.fading),
        refusals=_rows(state.refusals),
    )
    return codec.encode(snapshot)


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
    for host, host_row in snapshot.hosts:
        state.put_host(host, host_row)
    for device, device_row in snapshot.devices:
        state.put_device(device, device_row)
    for lease, lease_row in snapshot.leases:
        state.put_lease(lease, lease_row)
    state.answers.update(snapshot.answers)
    state.principals.update(snapshot.principals)
    state.fading.update(snapshot.fading)
    for position, refusal in snapshot.refusals:
        state.refusals.put(position, refusal)
        state.indexes.refusal_prints.put(refusal.fingerprint, position)
        state.indexes.refusal_queue.push(position)
    return state
