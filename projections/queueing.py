"""Requests that wait, as events move them. Who comes next: `waiting`."""

from collections.abc import Callable
from typing import Any, Final

from leasehold.projections.state import State

HANDLERS: Final[dict[type[Any], Callable[[State, int, int, Any], None]]] = {}
"""By type of event; see `evolve`."""
