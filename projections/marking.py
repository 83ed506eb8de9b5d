"""What operators said of devices and hosts, as events move it. Who may say it when: `operators`."""

from collections.abc import Callable
from typing import Any, Final

from leasehold.projections.state import State

HANDLERS: Final[dict[type[Any], Callable[[State, int, int, Any], None]]] = {}
"""By type of event; see `evolve`."""
