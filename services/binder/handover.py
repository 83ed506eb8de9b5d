"""What is said between the binder and its machine. It stands with the pure core, which speaks it, too."""

from leasehold.projections.handover import (
    Back,
    Before,
    Busy,
    Done,
    Failed,
    NotBack,
    PreparedDevice,
    Ready,
    Seen,
    Target,
    VfNetwork,
)

__all__ = [
    "Back",
    "Before",
    "Busy",
    "Done",
    "Failed",
    "NotBack",
    "PreparedDevice",
    "Ready",
    "Seen",
    "Target",
    "VfNetwork",
]
