"""Leases that are renewed together, transferred or switched, as events move them. Who may: `handingon`."""

from collections.abc import Callable
from typing import Any, Final

from leasehold.projections.state import State

HANDLERS: Final[dict[type[Any], Callable[[State, int, int, Any], None]]] = {}
"""By type of event; see `evolve`."""
