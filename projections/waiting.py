"""Requests that wait: who is let in, who comes next, who is looked at when something is better now, and who gives up.

What events make of them: `queueing`.
"""

from collections.abc import Callable
from typing import Any, Final

from leasehold.events.event_types import Event
from leasehold.events.identities import RequestRef
from leasehold.projections.declining import Declined
from leasehold.projections.state import State

DECIDERS: Final[dict[type[Any], Callable[[State, RequestRef, Any, int], list[Event] | Declined]]] = {}
"""By type of request; see `decide`."""
