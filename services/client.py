"""The client for programs: `from leasehold import Client`.

    async with Client() as client:
        async with client.lease("pci_0000_00_05_0", holder="vm:web1", ttl_ms=60_000) as lease:
            ...  # the device is ours; renewed by itself, released at the end

Requests are asked again under the same id until they are answered, so each has one effect at most.

    snapshot = await client.snapshot(host="h1")
    async for event in client.events(since=snapshot, host="h1"):
        ...  # everything that happened behind the snapshot, each event once and in order
"""

import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    TryAgain,
    retry_if_exception_type,
    stop_before_delay,
    wait_exponential_jitter,
)

from leasehold.events import checks, codec, limits
from leasehold.events.answers import Answer
from leasehold.events.errors import InvalidInputError, OutcomeUnknownError, RefusedError, UnavailableError
from leasehold.events.identities import Principal
from leasehold.events.inputs import Request
from leasehold.events.position import end_of_record
from leasehold.events.questions import PAST_QUESTIONS, Question, Reading, Status
from leasehold.events.subjects import EVENTS_STREAM, LEDGER_STREAM, Subjects
from leasehold.services import home
from leasehold.services.acting import Acting
from leasehold.services.connection import Connection, connect, disconnect
from leasehold.services.credentials import Credential, own_credential, read_credential
from leasehold.services.feedevents import FeedEvent, Log, Snapshot, wanted
from leasehold.services.ledger.direct import DirectTail
from leasehold.services.ledger.jetstream import JetStreamLedger
from leasehold.services.looking import Looking
from leasehold.services.past import Past
from leasehold.services.permissions import publishes
from leasehold.services.scheduling import Scheduling

ATTEMPT_TIMEOUT_S: Final = limits.REQUEST_TIMEOUT_MS / 1_000 + 0.2
PATIENCE_S: Final = 10.0
PAUSE_S: Final = 0.05
PAUSE_S_MAX: Final = 1.0


def _given_up(_state: RetryCallState) -> None:
    """Those who have asked say what they make of it."""


class Client(Looking, Acting, Scheduling):
    """A connection to one cluster, as one principal. Positions seen here are never un-seen by its later questions."""

    def __init__(
        self,
        data: str | Path | None = None,
        *,
        credentials: str | Path | None = None,
        url: str | None = None,
        principal: str | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """Nothing is connected yet.

        Args:
            data: Data directory of an `up`, whose operator's credential is used; without it (and without
                `credentials`) the running one of this user is found.
            credentials: A file made by `leasehold credentials add` (or LEASEHOLD_CREDENTIALS).
            url: Of the NATS server, or several with commas between them, in place of those that the credential names.
            principal: Who asks, as a check: it can only be the credential's.
            patience_s: How long an unanswered request is asked again before it counts as of unknown outcome.
        """
        self._data = str(data) if data is not None else None
        self._credentials = str(credentials) if credentials is not None else None
        self._url = url
        self._expected = principal
        self._principal = Principal("")
        self._role = ""
        self._may: frozenset[str] = frozenset()
        self._patience_s = patience_s
        self._connection: Connection | None = None
        self._subjects = Subjects(home.DEFAULT_CLUSTER)
        self.seen = 0
        """The highest position that this client has seen, in the newest era that it has seen."""
        self._era = 0

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Connect.

        Raises:
            UnavailableError: no `up` was found, its bus does not answer, or does not let us in.
            InvalidInputError: the credential is none, or another principal's than was named.
        """
        credential, urls = self._found()
        principal = home.checked_principal(credential.principal, self._expected)
        self._subjects = Subjects(credential.cluster)
        self._connection = await connect(urls, credential=credential, name=f"client {principal}")
        self._principal, self._role = principal, credential.role
        self._may = frozenset(publishes(credential.user, credential.cluster))

    def _subject(self, verb: str) -> str:
        """Where to ask. Raises InvalidInputError if the bus would not take it from us, which looked like silence."""
        subject = self._subjects.request(self._principal, verb)
        if self._connection is not None and subject not in self._may:
            raise InvalidInputError(f"{self._principal} has the role {self._role}, which may not {verb}", field="role")
        return subject

    def _found(self) -> tuple[Credential, list[str]]:
        """Who we are, and where the bus is."""
        named = self._named_key
        if named:
            credential = read_credential(Path(named))
            urls = self._url.split(",") if self._url else list(credential.urls)
            if not urls:
                raise InvalidInputError(f"{named} names no address of a bus; name one", field="url")
            return credential, urls
        info = home.read_connection(home.find_data_dir(self._data))
        return own_credential(info, "operator"), self._url.split(",") if self._url else info.urls

    @property
    def _named_key(self) -> str | None:
        # What is named here counts before what the environment names.
        return self._credentials or (None if self._data else os.environ.get("LEASEHOLD_CREDENTIALS"))

    @property
    def has_key(self) -> bool:
        """Whether a credential was named, so that no data directory is looked at."""
        return bool(self._named_key)

    @property
    def principal(self) -> Principal:
        """Who asks: the credential's principal; empty before `open`."""
        return self._principal

    def ledger(self) -> JetStreamLedger:
        """The ledger, to be read; to be closed by whoever asked for it."""
        return JetStreamLedger(self.connection, self.subjects, tail=DirectTail)

    async def close(self) -> None:
        """Disconnect. Leases stay as they are."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await disconnect(connection)

    @property
    def connection(self) -> Connection:
        """The connection, for those who follow the log themselves."""
        if self._connection is None:
            raise UnavailableError("the client is not open: use `async with Client()`")
        return self._connection

    @property
    def subjects(self) -> Subjects:
        """The cluster's subjects."""
        return self._subjects

    # --- requests ---------------------------------------------------------------------------------------------------

    async def ask(self, request: Request) -> Answer:
        """Ask until there is an answer, under the request's one id.

        Raises:
            RefusedError: it was decided against; the text and `refusal_code` say why.
            InvalidInputError: the request cannot be taken as it is; the text names the field.
            OutcomeUnknownError: no answer within the client's patience: it may have been decided. Ask again with the
                same request id.
            UnavailableError: nobody could be reached within that time; nothing was done.
        """
        answer = await self.answer_to(request)
        if answer.outcome == "refused":
            refusal = answer.refusal
            assert refusal is not None
            raise RefusedError(refusal.message, refusal_code=refusal.code, position=answer.position)
        if answer.outcome == "invalid":
            raise InvalidInputError(answer.message.removeprefix(f"{answer.field}: "), field=answer.field)
        return answer

    async def answer_to(self, request: Request) -> Answer:
        """As `ask`, but a refusal, or a request that cannot be read, is returned and not raised."""
        checks.check_request(request)
        subject = self._subject(codec.verb_of(request))
        body = codec.encode(request)
        may_have_arrived, why = False, ""
        async for attempt in self._attempts():
            with attempt:
                answer, arrived, why = await self._attempt(subject, body)
                await self.connection.note(well=answer is not None)
                if answer is not None:
                    self._saw(answer.era, answer.as_of)
                    return answer
                may_have_arrived = may_have_arrived or arrived
                raise TryAgain
        if may_have_arrived:
            raise OutcomeUnknownError(
                f"no answer within {self._patience_s:g} s ({why}); ask again with request id {request.request_id}",
                request_id=request.request_id,
            )
        raise UnavailableError(f"nothing was done: {why}")

    def _attempts(self) -> AsyncRetrying:
        """Attempts with pauses between them, which grow and differ, for as long as we are patient."""
        return AsyncRetrying(
            stop=stop_before_delay(self._patience_s),
            wait=wait_exponential_jitter(multiplier=PAUSE_S, max=PAUSE_S_MAX, jitter=PAUSE_S),
            retry=retry_if_exception_type(TryAgain),
            retry_error_callback=_given_up,
        )

    async def _attempt(self, subject: str, body: bytes) -> tuple[Answer | None, bool, str]:
        """One try: the answer if it is final, whether the request may have been taken, and what was in the way."""
        if not self.connection.is_connected:
            return None, False, "the bus is not connected"
        try:
            reply = await self.connection.ask(subject, body, timeout_s=ATTEMPT_TIMEOUT_S)
        except UnavailableError as error:
            return None, True, str(error)
        if reply.status:
            return None, False, "no allocator listens"
        try:
            answer = msgspec.json.decode(reply.body, type=Answer)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return None, True, f"answered with something else than an answer ({error})"
        if answer.outcome in ("unavailable", "outcome_unknown"):
            return None, answer.outcome == "outcome_unknown", answer.message
        return answer, True, ""

    # --- questions --------------------------------------------------------------------------------------------------

    async def question(self, verb: str, question: Question) -> Reading:
        """Ask a question; the answer is never older than what this client has seen.

        Raises:
            InvalidInputError: it cannot be taken as it is, or names nothing that is known.
            UnavailableError: nobody answers in time.
        """
        subject = self._subject(verb)
        reading, why = None, ""
        async for attempt in self._attempts():
            with attempt:
                asked = msgspec.structs.replace(question, min_position=max(self.seen, question.min_position))
                reading, why = await self._try_question(subject, codec.encode(asked))
                await self.connection.note(well=reading is not None)
                if reading is None:
                    raise TryAgain
        if reading is None:
            raise UnavailableError(why)
        if reading.outcome in ("invalid", "not_found"):
            raise InvalidInputError(reading.message.removeprefix(f"{reading.field}: "), field=reading.field)
        return reading

    def _saw(self, era: int, as_of: int) -> None:
        """In a restored log what was seen of the one before may be lost, so only what is seen of the newest counts."""
        if era > self._era:
            self._era, self.seen = era, 0
        if era == self._era:
            self.seen = max(self.seen, as_of)

    async def _try_question(self, subject: str, body: bytes) -> tuple[Reading | None, str]:
        try:
            reply = await self.connection.ask(subject, body, timeout_s=ATTEMPT_TIMEOUT_S)
        except UnavailableError as error:
            return None, str(error)
        if reply.status:
            return None, f"no {'archive' if subject.rpartition('.')[2] in PAST_QUESTIONS else 'query service'} listens"
        try:
            reading = msgspec.json.decode(reply.body, type=Reading)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return None, f"answered with something else than a reading ({error})"
        self._saw(reading.era, reading.as_of)
        return (None, reading.message) if reading.outcome == "unavailable" else (reading, "")

    # --- the feed ---------------------------------------------------------------------------------------------------

    async def events(
        self,
        since: int | Snapshot | FeedEvent | None = None,
        *,
        host: str = "",
        kind: str = "",
        device: str = "",
        lease: int | str = "",
        tenant: str = "",
    ) -> AsyncGenerator[FeedEvent, None]:
        """What happens, for ever: each event once and in order, whatever becomes of the bus and of the feed.

        Args:
            since: Behind a snapshot, an event, or a position (of today's era); without it from now on.
            host: Only what is told of this host.
            kind: Only this type of events, without its version: `lease_granted`.
            device: Only of this device: its id (`host/key`), or with `host` its key.
            lease: Only of this lease.
            tenant: Only of leases of this tenant, and refusals to it.

        Raises:
            InvalidInputError: one of these cannot be; or this role may not follow the feed.
            SnapshotNeededError: what followed cannot be had any more, or the ledger is another one: take a snapshot.
            UnavailableError: it cannot be known where to begin; or the client was closed.
        """
        # Who only asks loads nothing of this.
        from leasehold.services.following import Following  # noqa: PLC0415

        chosen = wanted(host=host, kind=kind, device=device, lease=lease, tenant=tenant)
        position, log = await self._since(since)
        if not self._may_read(EVENTS_STREAM):
            raise InvalidInputError(f"{self._principal} has the role {self._role}, which may not follow", field="role")
        ledger = self.ledger if self._may_read(LEDGER_STREAM) else None
        following = Following(self.connection, self.subjects, chosen, position, log, ledger)
        async with aclosing(following.events()) as events:
            async for event in events:
                self.seen = max(self.seen, event.position)
                yield event

    def _may_read(self, stream: str) -> bool:
        return f"{self.connection.api_prefix}.DIRECT.GET.{stream}" in self._may

    async def _since(self, since: int | Snapshot | FeedEvent | None) -> tuple[int, Log]:
        if isinstance(since, Snapshot | FeedEvent):
            return since.position, since.log
        if since is not None and (type(since) is not int or not 0 <= since < 2**53):
            raise InvalidInputError(f"{str(since)[:80]!r} is no position", field="since")
        reading = await self.question("status", Status(min_position=since or 0))
        assert reading.status is not None
        log = Log(reading.status.ledger_id, reading.status.era)
        return end_of_record(reading.status.sequence) if since is None else since, log

    async def snapshot(self, *, host: str = "") -> Snapshot:
        """How it is: the devices and who has them, all as of one position. An archive answers. Raises as `question`."""
        past = Past(self)
        archive = await past.archive()
        owners = past.owners(host=host)
        rows = await owners.all()
        assert owners.place is not None
        position = owners.place.at_position
        devices = await past.devices(position, host=host).all()
        log = Log(archive.ledger_id, archive.era)
        return Snapshot(position=position, log=log, devices=tuple(devices), owners=tuple(rows))
