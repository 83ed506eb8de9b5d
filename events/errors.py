"""The exceptions, all of them. A refusal is not one: it is a value (`leasehold.events.refusals`).

Each class has a stable `code` for programs; its docstring is the default message for people.
"""

from typing import ClassVar


class LeaseholdError(Exception):
    """Something went wrong in Leasehold."""

    code: ClassVar[str] = "error"

    def __init__(self, message: str = "") -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())


class InvalidInputError(LeaseholdError):
    """A value given from outside cannot be taken."""

    code = "invalid"

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field


class RefusedError(LeaseholdError):
    """A request was decided against. Raised by the client only, from the refusal in the answer."""

    code = "refused"

    def __init__(self, message: str, *, refusal_code: str, position: int = 0) -> None:
        super().__init__(message)
        self.refusal_code = refusal_code
        self.position = position


class UnavailableError(LeaseholdError):
    """The service cannot be reached or does not decide at the moment; nothing was done."""

    code = "unavailable"


class OutcomeUnknownError(UnavailableError):
    """No answer came: the request may or may not have been decided. Ask again with the same request id."""

    code = "outcome_unknown"

    def __init__(self, message: str = "", *, request_id: str = "") -> None:
        super().__init__(message)
        self.request_id = request_id


class LeaseLostError(LeaseholdError):
    """The lease ended while its holder still counted on it."""

    code = "lease_lost"


class SnapshotNeededError(LeaseholdError):
    """What was told since cannot be had any more: take a snapshot, and follow the feed from there."""

    code = "snapshot_needed"


class FeedMovedError(UnavailableError):
    """EVENTS does not end where a feed believed that it does."""

    code = "feed_moved"


class CorruptLedgerError(LeaseholdError):
    """The ledger is not what it was: a record is changed, missing, added or out of order."""

    code = "corrupt_ledger"

    def __init__(self, message: str, *, sequence: int = 0) -> None:
        super().__init__(f"record {sequence}: {message}" if sequence else message)
        self.sequence = sequence


class CorruptSnapshotError(LeaseholdError):
    """A snapshot does not hold what was written into it."""

    code = "corrupt_snapshot"


class UnknownFormatError(CorruptLedgerError):
    """A record was written in a form that this build does not know."""

    code = "unknown_format"


class StoreInUseError(LeaseholdError):
    """Another server already uses this data directory."""

    code = "store_in_use"


class ServerStartError(LeaseholdError):
    """The NATS server did not come up."""

    code = "server_start"


class StorageError(LeaseholdError):
    """What is kept on this machine's disk cannot be written or read."""

    code = "storage"
