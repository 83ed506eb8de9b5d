"""Words that sentences about events have in common."""

from typing import Final

from leasehold.events.identities import RequestRef
from leasehold.events.position import lease_id_text
from leasehold.projections.state import State

_UNITS: Final = ((86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1_000, "s"))


def span_text(ms: int) -> str:
    """A time span in the largest units that say it exactly: `90 s`, `2 min`, `1500 ms`."""
    for size, unit in _UNITS:
        if ms >= size and ms % size == 0:
            return f"{ms // size} {unit}"
    return f"{ms} ms"


def asked_text(ref: RequestRef) -> str:
    """Whose request it was."""
    return f"asked by {ref.principal}, request {ref.request_id}"


def lease_text(lease: int, state: State | None) -> str:
    """A lease, and for whom it is, if `state` still knows it."""
    row = state.leases.get(lease) if state is not None else None
    return f"{lease_id_text(lease)} of {row.holder}" if row else lease_id_text(lease)
