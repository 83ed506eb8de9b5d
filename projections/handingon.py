"""Leases that are renewed together, given to another holder, or moved with their domain in two steps.

What events make of them: `keeping`.
"""

from collections.abc import Callable
from typing import Any, Final

from leasehold.events.event_types import Event
from leasehold.events.identities import RequestRef
from leasehold.projections.declining import Declined
from leasehold.projections.state import State

DECIDERS: Final[dict[type[Any], Callable[[State, RequestRef, Any, int], list[Event] | Declined]]] = {}
"""By type of request; see `decide`."""
