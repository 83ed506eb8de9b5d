"""EVENTS as a feed sees it: where it ends, and how it is emptied."""

from typing import Final

from leasehold.events.cloudevents import raw_headers, read_attributes
from leasehold.events.errors import InvalidInputError, UnavailableError
from leasehold.events.subjects import EVENTS_STREAM
from leasehold.services.connection import Connection
from leasehold.services.feed.outbox import End
from leasehold.services.ledger import api

LEAP: Final = 1_000_000
"""When EVENTS is emptied, its places go on so much higher: what is still under way for a place of before is refused."""


async def state_of_events(connection: Connection) -> api.StreamState:
    """What EVENTS holds.

    Raises:
        UnavailableError: it cannot be known now, or there is no such stream.
    """
    info = await api.stream_info(connection, EVENTS_STREAM)
    if info.error is not None:
        raise UnavailableError(f"no {EVENTS_STREAM}, which `leasehold run keeper` makes: {info.error.description}")
    return info.state


async def end_of_events(connection: Connection) -> End:
    """Where EVENTS ends.

    Raises:
        UnavailableError: it cannot be known now.
    """
    state = await state_of_events(connection)
    if not state.messages:
        return End(sequence=state.last_seq)
    request = {"seq": state.last_seq}
    reply = await api.call(connection, f"STREAM.MSG.GET.{EVENTS_STREAM}", request, api.StoredReply)
    if reply.error is not None:
        raise UnavailableError(f"the end of {EVENTS_STREAM} cannot be read: {reply.error.description}")
    try:
        said = read_attributes(raw_headers(reply.message.hdrs).items())
    except InvalidInputError as error:
        return End(sequence=state.last_seq, wrong=f"its last message is not a feed's ({error.field}: {error})")
    return End(sequence=state.last_seq, said=said, body=reply.message.data)


async def empty_events(connection: Connection, last: int) -> None:
    """Empty EVENTS, which ended at place `last`, and let its places go on far higher. Done twice, it is done once.

    Raises:
        UnavailableError: it cannot be done now.
    """
    request = {"seq": last + LEAP + 1}
    reply = await api.call(connection, f"STREAM.PURGE.{EVENTS_STREAM}", request, api.PurgeReply)
    if reply.error is not None or not reply.success:
        raise UnavailableError(f"{EVENTS_STREAM} cannot be emptied: {reply.error}")
