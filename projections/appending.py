"""How one append comes to a certain end, whatever the network says: a pure state machine.

The shell does what `action` says and reports the result; only `Won` and `Lost` are ends. Facts about the server behind
the rules: a retry of an append that had been stored is refused with 10071 and our own sequence on one server (R1), but
acknowledged as `duplicate` on a replicated stream (R3); a time-out says nothing, and the message may still arrive.
Appending again with the same expectation is safe, since only one of both can win.
"""

from enum import Enum

import msgspec

from leasehold.events.errors import CorruptLedgerError


class Append(msgspec.Struct, frozen=True):
    """Append `body`, expecting that `expected` is the last sequence."""

    expected: int
    body: bytes


class Read(msgspec.Struct, frozen=True):
    """Read the record at `sequence` from the stream's leader; `None` if nothing is there."""

    sequence: int


class Won(msgspec.Struct, frozen=True):
    """Our record stands at `sequence`."""

    sequence: int


class Lost(msgspec.Struct, frozen=True):
    """Another's record, `body`, stands at `sequence`; ours is nowhere and never will be."""

    sequence: int
    body: bytes


Action = Append | Read | Won | Lost


class Said(Enum):
    """What an append was answered with."""

    STORED = "stored"
    REFUSED = "refused"
    NOTHING = "nothing"


class Appender:
    """One append of `body` behind sequence `expected`."""

    def __init__(self, expected: int, body: bytes) -> None:
        self._expected = expected
        self._body = body
        self.action: Action = Append(expected, body)

    def answered(self, said: Said, sequence: int = 0) -> Action:
        """Take the answer to `Append`: with the sequence it was stored at, or the last one that the refusal named.

        Raises:
            CorruptLedgerError: the log ends before what we have read of it.
        """
        assert isinstance(self.action, Append)
        if said is Said.REFUSED and 0 < sequence < self._expected:
            raise CorruptLedgerError(
                f"the log ends at {sequence}, but {self._expected} was read from it before", sequence=sequence + 1
            )
        if said is Said.STORED and sequence == self._expected + 1:
            self.action = Won(sequence)
        else:
            self.action = Read(self._expected + 1)
        return self.action

    def found(self, body: bytes | None) -> Action:
        """Take what stands behind `expected`: our record, another's, or nothing yet."""
        assert isinstance(self.action, Read)
        if body is None:
            self.action = Append(self._expected, self._body)
        elif body == self._body:
            self.action = Won(self._expected + 1)
        else:
            self.action = Lost(self._expected + 1, body)
        return self.action
