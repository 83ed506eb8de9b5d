"""Brings one append to a certain end, however long that takes."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from leasehold.events import limits
from leasehold.events.errors import UnavailableError
from leasehold.projections.appending import Append, Appender, Lost, Read, Said, Won
from leasehold.services.ledger.port import Ledger

_log: Final = logging.getLogger(__name__)

PAUSE_S: Final = 0.01
PAUSE_S_MAX: Final = 0.25


async def append_certainly(
    ledger: Ledger,
    expected: int,
    body: bytes,
    *,
    pause_s: float = PAUSE_S,
    timeout_s: float = limits.APPEND_TIMEOUT_MS / 1_000,
    on_unknown: Callable[[], None] | None = None,
) -> Won | Lost:
    """Append `body` behind `expected` and come back only when it is certain whether it stands there.

    Tries for ever while that is unknown; cancelling is safe, but leaves it unknown.

    Args:
        pause_s: How long to wait after an attempt without a clear answer; doubles up to 0.25 s.
        timeout_s: How long one attempt waits for its answer.
        on_unknown: Called once, when an attempt first ends without a clear answer: who waits can then be told.

    Raises:
        InvalidInputError: the body is empty or too long, or stands somewhere else in the log already.
        CorruptLedgerError: the log ends before `expected`, or lacks a record.
    """
    cancellations = _cancellations()
    appender = Appender(expected, body)
    action = appender.action
    while not isinstance(action, Won | Lost):
        clear = True
        if isinstance(action, Append):
            said, sequence = await ledger.append(action.expected, action.body, timeout_s=timeout_s)
            clear = said is not Said.NOTHING
            action = appender.answered(said, sequence)
        else:
            clear, action = await _read(ledger, appender, action)
        if _cancellations() > cancellations:
            # The NATS client swallows a cancellation that reaches it while it waits for its socket.
            raise asyncio.CancelledError
        if not clear:
            if on_unknown is not None:
                on_unknown()
                on_unknown = None
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, PAUSE_S_MAX)
    return action


async def _read(ledger: Ledger, appender: Appender, action: Read) -> tuple[bool, Append | Read | Won | Lost]:
    try:
        body = await ledger.read(action.sequence)
    except UnavailableError as error:
        _log.debug("whether record %d is there stays unknown: %s", action.sequence, error)
        return False, action
    # With nothing there, the refused or lost append is tried again; not at once, or a log that keeps refusing without
    # a record to show for it would be asked in a tight loop.
    return body is not None, appender.found(body)


def _cancellations() -> int:
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0
