"""Device classes, which are named selectors, and quotas: who may set them, and what events make of them."""

from collections.abc import Callable
from typing import Any, Final

from leasehold.events.event_types import Event
from leasehold.events.identities import RequestRef
from leasehold.projections.declining import Declined
from leasehold.projections.state import State

DECIDERS: Final[dict[type[Any], Callable[[State, RequestRef, Any, int], list[Event] | Declined]]] = {}
"""By type of request; see `decide`."""
HANDLERS: Final[dict[type[Any], Callable[[State, int, int, Any], None]]] = {}
"""By type of event; see `evolve`."""
