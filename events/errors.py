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


class SelectorError(LeaseholdError):
    """A selector cannot be read. Met only inside of reading one, which gives it on as a value.

    `at`: where, in characters from its beginning.
    """

    code = "selector"

    def __init__(self, at: int, message: str) -> None:
        super().__init__(message)
        self.at = at
        self.message = message


class SearchCutOffError(LeaseholdError):
    """A search has taken all the steps that it may. Met only inside of searching, which gives it on as a value."""

    code = "search_cut_off"


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


class SourceUnavailableError(UnavailableError):
    """The hypervisor does not answer: what domains there are is not known."""

    code = "source_unavailable"


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


# --- xend -----------------------------------------------------------------------------------------------------------


class SxpError(LeaseholdError):
    """This is no SXP, or more of it than is taken. `message`: in the words of xend's own reader, where it has them."""

    code = "sxp"

    def __init__(self, message: str, *, position: int, where: str = "") -> None:
        super().__init__(f"byte {position}: {message}" + (f" ({where})" if where else ""))
        self.message = message
        self.position = position


class XendError(LeaseholdError):
    """xend did not do what it was asked.

    `op`: what it was asked; `status`: the HTTP status of its answer, the number of its fault, or 0.
    """

    code = "xend"

    def __init__(self, message: str = "", *, op: str = "", status: int = 0) -> None:
        super().__init__(f"{op}: {message}" if op else message)
        self.op = op
        self.status = status


class XendFailedError(XendError):
    """xend tried, and says why it failed, in the words of the Python exception that it met."""

    code = "xend_failed"


class XendNotFoundError(XendError):
    """xend has no such domain, or no such thing. A domain may have gone since it was listed."""

    code = "xend_not_found"


class XendUnsupportedError(XendError):
    """xend, or the way that it is spoken to here, has no such operation."""

    code = "xend_unsupported"


class XendReplyError(XendError):
    """What came back is not what xend answers: no HTTP, a page for browsers, too much, or not readable."""

    code = "xend_reply"


class XendUnavailableError(XendError, UnavailableError):
    """xend cannot be reached: nothing was asked of it."""

    code = "xend_unavailable"


class XendNoReplyError(XendUnavailableError):
    """xend took a request and gave no whole answer in time. If it was to change something, it may have."""

    code = "xend_no_reply"


class XendSimError(LeaseholdError):
    """The stand-in for xend refuses, as xend would.

    `kind`: "error" (what xend means to say), "python" (what happened to it), "missing" (there is no such domain).
    """

    code = "xend_sim"

    def __init__(self, message: str, *, kind: str = "error") -> None:
        super().__init__(message)
        self.kind = kind
