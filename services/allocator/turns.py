"""Whose turn it is: what waits in front of the sequencer, in fair order between principals.

Who asks much waits behind his own requests, not others behind him: principals take turns, one request each. Alone, one
may use all that there is.
"""

from collections import OrderedDict, deque

import msgspec

from leasehold.events import limits
from leasehold.events.identities import Principal


class Waiting(msgspec.Struct, frozen=True):
    """A request as it came, not yet decoded."""

    principal: Principal
    verb: str
    body: bytes
    reply: bytes
    arrived_s: float


class Turns:
    """Requests that wait for their turn, bounded in number and bytes, for each principal and for all."""

    def __init__(self) -> None:
        self._lines: OrderedDict[Principal, _Line] = OrderedDict()
        self._count = 0
        self._bytes = 0

    def __len__(self) -> int:
        return self._count

    def put(self, waiting: Waiting) -> bool:
        """Let a request wait behind its principal's others; `False` if too much of that principal waits already.

        The more principals wait, the smaller is the share of each, so that the late ones find room too.
        """
        line = self._lines.get(waiting.principal)
        sharers = len(self._lines) + (line is None)
        size = len(waiting.body)
        if self._count >= 2 * limits.REQUESTS_WAITING_MAX or self._bytes >= 2 * limits.REQUESTS_WAITING_BYTES_MAX:
            return False
        if line is None:
            line = self._lines[waiting.principal] = _Line()
        elif (
            len(line.requests) >= min(limits.REQUESTS_WAITING_PER_PRINCIPAL_MAX, limits.REQUESTS_WAITING_MAX // sharers)
            or line.bytes + size > limits.REQUESTS_WAITING_BYTES_MAX // (sharers + 1)
        ):
            return False
        line.requests.append(waiting)
        line.bytes += size
        self._count += 1
        self._bytes += size
        return True

    def take(self) -> Waiting | None:
        """The next one: the longest waiting of the principal whose turn it is."""
        if not self._lines:
            return None
        principal, line = next(iter(self._lines.items()))
        waiting = self._pop(principal, line)
        if line.requests:
            self._lines.move_to_end(principal)
        return waiting

    def overdue(self, arrived_before_s: float) -> list[Waiting]:
        """Take out what arrived before that."""
        found = []
        for principal, line in tuple(self._lines.items()):
            while line.requests and line.requests[0].arrived_s < arrived_before_s:
                found.append(self._pop(principal, line))
        return found

    def _pop(self, principal: Principal, line: "_Line") -> Waiting:
        waiting = line.requests.popleft()
        size = len(waiting.body)
        line.bytes -= size
        self._count -= 1
        self._bytes -= size
        if not line.requests:
            del self._lines[principal]
        return waiting


class _Line:
    __slots__ = ("bytes", "requests")

    def __init__(self) -> None:
        self.requests: deque[Waiting] = deque()
        self.bytes = 0
