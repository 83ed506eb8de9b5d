"""How it stands with the feed, for who may read all of it."""

import msgspec

from leasehold.events.cloudevents import raw_headers, read_attributes
from leasehold.events.errors import InvalidInputError, UnavailableError
from leasehold.events.subjects import EVENTS_STREAM, Subjects
from leasehold.services.connection import Connection
from leasehold.services.feed.stream import state_of_events
from leasehold.services.ledger import api


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """What EVENTS holds: `messages` of the events at positions `first` to `last` of this ledger and era; 0: nothing.
    `at_ns`: when the last one was decided.
    """

    ledger_id: str = ""
    era: int = 0
    messages: int = 0
    bytes: int = 0
    first: int = 0
    last: int = 0
    at_ns: int = 0


async def feed_standing(connection: Connection, subjects: Subjects) -> Standing:
    """How it stands.

    Raises:
        UnavailableError: it cannot be known now, or not by this principal.
    """
    state = await state_of_events(connection)
    if not state.messages:
        return Standing()
    asked: tuple[dict[str, object], ...] = ({"seq": state.first_seq}, {"last_by_subj": subjects.events_all})
    reading = f"{connection.api_prefix}.DIRECT.GET.{EVENTS_STREAM}"
    try:
        first, last = [
            read_attributes(raw_headers(reply.headers).items())
            for reply in [
                await connection.ask(reading, msgspec.json.encode(each), timeout_s=api.API_TIMEOUT_S) for each in asked
            ]
        ]
    except InvalidInputError as error:
        raise UnavailableError(f"{EVENTS_STREAM} holds what is not a feed's ({error.field}: {error})") from error
    return Standing(
        ledger_id=last.ledger_id,
        era=last.era,
        messages=state.messages,
        bytes=state.bytes,
        first=first.position,
        last=last.position,
        at_ns=last.at_ns,
    )
