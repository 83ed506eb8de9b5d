"""The processes of `up`, with a short grace time: an order's time is over soon after a start, too."""

import sys

from leasehold.events import limits
from leasehold.services import processes

GRACE_MS = 200
assert GRACE_MS < limits.GRACE_MS
limits.GRACE_MS = GRACE_MS  # type: ignore[misc]

if __name__ == "__main__":
    sys.exit(processes.main())
