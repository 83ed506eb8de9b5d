"""Whether a history of leases of one device could have happened one step at a time (Wing and Gong, with Lowe's memo).

Each operation took effect at some moment between its call and its answer; one without an answer took effect later, or
never. A grant needs the device free, or its last lease past its time (an expiry is nobody's operation); a release needs
the lease that it names.
"""

from dataclasses import dataclass

FOREVER = 2**63


@dataclass
class Operation:
    """One request on some devices, as its caller saw it."""

    kind: str
    devices: tuple[str, ...]
    called_ns: int
    ttl_ns: int = 0
    lease: int = 0
    answered_ns: int = FOREVER
    ok: bool | None = None

    def finish(self, now_ns: int, *, ok: bool, lease: int) -> None:
        """The answer came."""
        self.answered_ns, self.ok = now_ns, ok
        self.lease = lease or self.lease


Owner = tuple[int, int]
"""A lease, and the time from which it may have expired."""


def _apply(operation: Operation, number: int, owner: Owner, renewed: dict[int, int]) -> Owner | None:
    """The owner after `operation`; `None` if it cannot follow."""
    name = operation.lease or -number - 1
    if operation.kind == "acquire":
        is_free = owner[0] == 0 or owner[1] <= operation.answered_ns
        return (name, max(operation.called_ns + operation.ttl_ns, renewed.get(name, 0))) if is_free else None
    if operation.ok:
        return (0, 0) if owner[0] == operation.lease else None
    return (0, 0) if owner[0] == operation.lease else owner


def is_linearizable(operations: list[Operation], renewed: dict[int, int]) -> bool:
    """Whether an order exists. `renewed`: lease -> time up to which it was certainly renewed."""
    history = [each for each in operations if each.ok is not False]
    history.sort(key=lambda operation: operation.called_ns)
    everything = (1 << len(history)) - 1
    optional = sum(1 << number for number, each in enumerate(history) if each.ok is None)
    tried: set[tuple[int, Owner]] = set()
    stack = [(0, (0, 0))]
    while stack:
        done, owner = stack.pop()
        if done | optional == everything:
            return True
        if (done, owner) in tried:
            continue
        tried.add((done, owner))
        waiting = [number for number in range(len(history)) if not done >> number & 1]
        first_answer = min(history[number].answered_ns for number in waiting)
        for number in waiting:
            if history[number].called_ns > first_answer:
                break
            after = _apply(history[number], number, owner, renewed)
            if after is not None:
                stack.append((done | 1 << number, after))
    return False
