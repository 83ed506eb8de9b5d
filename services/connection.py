"""A connection to the bus, with the settings that all of ours share.

Four habits of nats-py are changed here, by overriding methods whose names carry an underscore; that is why its minor
version is pinned and why `tests/integration/test_connection.py` checks each of them:

- It keeps what is published while disconnected and sends it later, after the caller's time-out: here that is refused.
- It closes for good on most errors that a server names before it drops a client (a slow consumer, say): here they are
  reported, and the end of the socket leads to a new connection as for any other reason.
- It wakes a task for each block, makes an object of each message, and hands it over through a queue: `listen` and `ask`
  take messages as the socket gives them, and `services/parser.py` reads them several times as fast.
- It hands what is sent to a task of its own: `ask` and `publish_all` write into a socket that is free themselves, what
  is asked in one turn of the loop in one piece. What a busy socket does not take goes the client's own way, in order.
"""

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import nats.aio.client
import nats.errors
from nats.aio.subscription import Subscription

from leasehold.events.errors import UnavailableError
from leasehold.services.commands import Questions, publications
from leasehold.services.complaints import Complaints
from leasehold.services.credentials import Credential
from leasehold.services.parser import BlockParser, Handler
from leasehold.services.permissions import inbox_of
from leasehold.services.tls import tls_for

_log: Final = logging.getLogger(__name__)

CONNECT_TIMEOUT_S: Final = 5.0
RECONNECT_WAIT_S: Final = 0.1
"""A server is back 24 ms after its start; waiting longer than this only adds to an outage."""
PING_INTERVAL_S: Final = 2
PINGS_OUTSTANDING_MAX: Final = 2
"""With the interval: a silent connection is given up after about six seconds."""
PENDING_BYTES_MAX: Final = 1024 * 1024
"""What may wait for the socket before a publisher has to wait; one record and its headers fit."""
MOVE_AFTER_S: Final = 10.0
"""A server that takes us, but through which nobody answers for this long, is left for another one. The choice of a new
leader takes up to nine seconds, and who leaves meanwhile only loses the answers that are on their way to him."""
FLUSH_TIMEOUT_S: Final = 0.25
FLUSH_WAIT_S: Final = 10
CLOSE_TIMEOUT_S: Final = 2.0

INBOXES: Final = (b"_INBOX", b"_R_.")
"""How every subject begins that an answer may be sent to: an inbox, or what the server made of another account's."""

READ_PREFIX: Final = "leasehold-read"
"""Where those who keep no streams ask for the ledger: `server.conf` leads it there."""

OnError = Callable[[Exception], None]


class Reply(msgspec.Struct, frozen=True):
    """What a request was answered with. `status` is 0 unless the server answered in a service's place (503: nobody)."""

    status: int
    headers: bytes
    body: bytes


class _Asked(NamedTuple):
    """A question that waits; `deadline_s` by the loop's clock."""

    answer: asyncio.Future[Reply]
    deadline_s: float
    subject: str
    timeout_s: float


class Connection(nats.aio.client.Client):
    """A NATS client that sends now or not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.reconnect_listeners: set[Callable[[], None]] = set()
        """Called after each reconnection: what the server kept for this connection may be gone."""
        self.api_prefix = "$JS.API"
        """Where JetStream is asked from here."""
        self.dropped = Complaints(_log, "messages were dropped")
        """What came for a service of ours and could not be taken."""
        self._taps: dict[int, Handler] = {}
        self._taps_to_come: dict[str, Handler] = {}
        self._ps: BlockParser = BlockParser(self, self._taps, self._process_msg)
        self._answers: dict[bytes, _Asked] = {}
        self._asked = 0
        self._questions = Questions()
        self._alarm: asyncio.TimerHandle | None = None
        """One for all questions, at the earliest of their deadlines or before."""
        self._sending: asyncio.Handle | None = None
        self._answer_prefix = b""
        self._answer_subscription: asyncio.Future[Subscription] | None = None
        self._in_vain_since_s: float | None = None

    async def note(self, *, well: bool) -> None:
        """Say how an exchange with the cluster ended. A server may be alive, but cut off from all others: after some
        seconds without a good end the connection goes to the next server, if there is another.
        """
        now_s = time.monotonic()
        if well or self._in_vain_since_s is None:
            self._in_vain_since_s = None if well else now_s
        elif now_s - self._in_vain_since_s > MOVE_AFTER_S and len(self.server_pool) > 1 and self.is_connected:
            self._in_vain_since_s = None
            _log.warning("nobody answers through %s: going to another server", self.connected_url)
            await self.force_reconnect()

    async def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Send a message now.

        Raises:
            UnavailableError: not connected; nothing was sent and nothing will be.
        """
        if not self.is_connected:
            raise UnavailableError("not connected to the bus")
        await super().publish(subject, payload, reply, headers)

    async def publish_all(self, messages: Sequence[tuple[bytes, bytes]]) -> None:
        """Send many messages, (subject, body) each, in one piece. The subjects are ones that came over the wire.

        Raises:
            UnavailableError: not connected; nothing was sent and nothing will be.
        """
        await self.send(publications(messages))

    async def send(self, commands: bytes) -> None:
        """Send commands of the protocol, as `commands` makes them, in one piece.

        Raises:
            UnavailableError: not connected; nothing was sent and nothing will be.
        """
        if not self._send_at_once(commands):
            await self._send_command(commands)
            await self._wake_flusher()

    def publish_at_once(self, messages: Sequence[tuple[bytes, bytes]]) -> bool:
        """As `publish_all`, if the socket is free; else `False`, and nothing was sent.

        Raises:
            UnavailableError: not connected; nothing was sent and nothing will be.
        """
        return self._send_at_once(publications(messages))

    def _send_at_once(self, commands: bytes) -> bool:
        if not self.is_connected:
            raise UnavailableError("not connected to the bus")
        transport = self._free_socket()
        if transport is None:
            return False
        transport.write(self._taken_pending() + commands)
        return True

    async def flush(self, timeout: int = FLUSH_WAIT_S) -> None:
        """As nats-py's, but behind all that was sent before: its ping would go ahead of what waits for the socket."""
        if self.is_connected and self._pending and self._transport is not None:
            self._transport.write(self._taken_pending())
        task = asyncio.current_task()
        before = task.cancelling() if task else 0
        await super().flush(timeout)
        if task is not None and task.cancelling() > before:
            # `wait_for` of Python 3.11 forgets it when the pong comes at the same moment: a service went on for ever.
            raise asyncio.CancelledError

    async def _read_loop(self) -> None:
        self._ps.take_from(getattr(self._transport, "_io_reader", None), lambda: self.is_connected)
        await super()._read_loop()

    async def _process_pong(self) -> None:
        if self._pongs and self._pongs[0].done():
            # Nobody waits for it any more: nats-py's error about that would end the read loop, and so the connection.
            self._pongs.pop(0)
            self._pings_outstanding = 0
            return
        await super()._process_pong()

    def _free_socket(self) -> asyncio.WriteTransport | None:
        """The socket, if it has taken all that was written so far; so what waits in it is bounded."""
        writer = getattr(self._transport, "_io_writer", None)
        if writer is None or writer.transport.get_write_buffer_size():
            return None
        transport: asyncio.WriteTransport = writer.transport
        return transport

    def _send_pending(self) -> None:
        """Write what was asked in this turn of the loop, with what was published before it."""
        self._sending = None
        transport = self._free_socket() if self.is_connected else None
        if transport is not None:
            transport.write(self._taken_pending())
        elif self._flush_queue is not None and self._flush_queue.empty():
            self._flush_queue.put_nowait(asyncio.get_running_loop().create_future())

    def _taken_pending(self) -> bytes:
        pending, self._pending, self._pending_data_size = self._pending, [], 0
        return b"".join(pending)

    async def _wake_flusher(self) -> None:
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()

    def tap(self, subject: str, handler: Handler) -> None:
        """Let `handler` take, as in `listen`, what comes to whoever subscribes to `subject` next (nats.micro, say)."""
        self._taps_to_come[subject] = handler

    async def subscribe(self, subject: str, *args: Any, **options: Any) -> Subscription:
        """As nats-py's; its messages come to the handler of a `tap`, if one waits for this subject."""
        subscription = await super().subscribe(subject, *args, **options)
        handler = self._taps_to_come.pop(subject, None)
        if handler is not None:
            self._taps[subscription._id] = handler
        return subscription

    async def listen(self, subject: str, handler: Handler) -> Subscription:
        """Give what arrives at `subject` to `handler` straight from the socket; survives reconnects.

        Raises:
            UnavailableError: the connection is closed or about to be.
        """
        try:
            subscription = await self.subscribe(subject)
        except nats.errors.Error as error:
            raise UnavailableError(f"{subject} cannot be listened to: {error}") from error
        self._taps[subscription._id] = handler
        return subscription

    async def stop_listening(self, subscription: Subscription) -> None:
        """The end of `listen`; no trouble of the connection matters to it."""
        self._taps.pop(subscription._id, None)
        try:
            await subscription.unsubscribe()
        except nats.errors.Error as error:
            _log.debug("nothing to unsubscribe from: %s", error)

    async def ask(
        self, subject: str, body: bytes = b"", *, timeout_s: float, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Send a request and wait for one answer.

        Raises:
            UnavailableError: not connected (nothing was sent), or no answer in time (anything may have happened).
        """
        if not self.is_connected or self.is_draining:
            await asyncio.sleep(0)  # who asks again at once must not keep the loop from connecting
            raise UnavailableError("not connected to the bus")
        await self._prepare_answers()
        self._asked += 1
        inbox = b"%b%d" % (self._answer_prefix, self._asked)
        try:
            command = self._questions.command(subject, inbox, body, headers)
            if len(body) > self.max_payload:
                raise nats.errors.MaxPayloadError
        except nats.errors.Error as error:
            raise UnavailableError(f"{subject} cannot be sent: {error}") from error
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Reply] = loop.create_future()
        deadline_s = loop.time() + timeout_s
        self._answers[inbox] = _Asked(answer, deadline_s, subject, timeout_s)
        self._wake_by(loop, deadline_s)
        try:
            await self._send_command(command)
            if len(self._answers) == 1:
                # Nobody else asks: there is nothing to wait for.
                self._send_pending()
            elif self._sending is None:
                self._sending = loop.call_soon(self._send_pending)
            return await answer
        finally:
            answer.cancel()
            self._answers.pop(inbox, None)

    def _wake_by(self, loop: asyncio.AbstractEventLoop, deadline_s: float) -> None:
        if self._alarm is None or deadline_s < self._alarm.when():
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm = loop.call_at(deadline_s, self._give_up_overdue, loop)

    def _give_up_overdue(self, loop: asyncio.AbstractEventLoop) -> None:
        self._alarm = None
        now_s, next_s = loop.time(), math.inf
        for asked in self._answers.values():
            if asked.deadline_s > now_s:
                next_s = min(next_s, asked.deadline_s)
            elif not asked.answer.done():
                said = f"no answer from {asked.subject} within {asked.timeout_s:g} s"
                asked.answer.set_exception(UnavailableError(said))
        if next_s < math.inf:
            self._wake_by(loop, next_s)

    async def _prepare_answers(self) -> None:
        if self._answer_subscription is None:
            prefix = f"{self.new_inbox()}."
            self._answer_prefix = prefix.encode()
            self._answer_subscription = asyncio.ensure_future(self.listen(f"{prefix}*", self._take_answer))
        await asyncio.shield(self._answer_subscription)

    def fail_answers(self, reason: str) -> None:
        """Let all who wait for an answer know that none will come: the connection that it was to come on is gone."""
        for asked in self._answers.values():
            if not asked.answer.done():
                asked.answer.set_exception(UnavailableError(reason))

    def _take_answer(self, subject: bytes, _reply: bytes, body: bytes, headers: bytes | None) -> None:
        asked = self._answers.get(subject)
        if asked is not None and not asked.answer.done():
            asked.answer.set_result(Reply(status_of(headers), headers or b"", body))

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        handler = self._taps.get(sid)
        if handler is None:
            if sid in self._subs:  # else it was under way when the listening ended, and is nobody's
                await self._process_request(sid, subject, reply, data, headers)
            return
        try:
            handler(subject, reply, data, headers)
        except Exception:  # noqa: BLE001 - whatever it is, it would silently end the read loop, and so the connection
            _log.exception("a message at %r could not be taken", subject)

    async def _process_request(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        """What comes from others. It must not say where we write: we may write the ledger, and to the server's API."""
        if reply and not reply.startswith(INBOXES):
            self.dropped.tell("a message at %r was dropped: its answer was wanted at %r", subject[:120], reply[:120])
            return
        try:
            await super()._process_msg(sid, subject, reply, data, headers)
        except UnicodeDecodeError:
            # It would end the read loop, and so the connection.
            self.dropped.tell("a message at %r was dropped: not a subject of ours", subject[:120])

    async def _attempt_reconnect(self) -> None:
        # nats-py would wait until the old socket is closed in good order: with TLS, and nobody there, for 30 s.
        _abort(self)
        await super()._attempt_reconnect()

    async def _process_err(self, err_msg: str) -> None:
        await self._error_cb(nats.errors.Error(f"nats: {err_msg.strip(chr(39))}"))


def status_of(headers: bytes | None) -> int:
    """The status in the first line of raw headers (`NATS/1.0 503`), 0 if there is none."""
    text = headers[9:12] if headers else b""
    return int(text) if text.isdigit() else 0


async def connect(
    url: str | Sequence[str],
    *,
    credential: Credential,
    name: str,
    on_error: OnError | None = None,
    timeout_s: float = CONNECT_TIMEOUT_S,
) -> Connection:
    """Connect to a server, and from then on reconnect for ever.

    Args:
        url: One or several addresses of the same cluster.
        credential: Who we are; answers come to inboxes below `_INBOX_<principal>`, where nobody else may listen.
        name: Shown in the server's list of connections.
        on_error: Told of everything that the server or the client complains about, a violated permission above all:
            to the caller of a request it only looks like a time-out. Everything is logged too.

    Raises:
        UnavailableError: no connection within `timeout_s`, or the credential is refused.
        InvalidInputError: another machine would be spoken to without TLS.
    """
    urls = [url] if isinstance(url, str) else list(url)
    # Each begins somewhere, and then goes round: shuffled again and again, one would come back to a useless server.
    random.shuffle(urls)
    tls = tls_for(urls, credential.ca_pem)
    connection = Connection()
    if credential.user.account != "ledger":
        connection.api_prefix = READ_PREFIX
    ear = _Ear(connection, name, on_error)
    connecting = asyncio.ensure_future(
        connection.connect(
            urls,
            nkeys_seed_str=credential.seed,
            name=name,
            tls=tls,
            inbox_prefix=inbox_of(credential.principal),
            error_cb=ear.complain,
            disconnected_cb=ear.disconnected,
            reconnected_cb=ear.reconnected,
            allow_reconnect=True,
            max_reconnect_attempts=-1,
            dont_randomize=True,
            reconnect_time_wait=RECONNECT_WAIT_S,  # type: ignore[arg-type]
            connect_timeout=2,
            ping_interval=PING_INTERVAL_S,
            max_outstanding_pings=PINGS_OUTSTANDING_MAX,
            pending_size=PENDING_BYTES_MAX,
            flush_timeout=FLUSH_TIMEOUT_S,
            drain_timeout=int(CLOSE_TIMEOUT_S),
        )
    )
    waiting = asyncio.ensure_future(ear.refused.wait())
    try:
        await asyncio.wait({connecting, waiting}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if connecting.done():
            connecting.result()
            return connection
    except (nats.errors.Error, OSError) as error:
        raise UnavailableError(f"{url} cannot be reached: {error}") from error
    finally:
        waiting.cancel()
        if not connection.is_connected:
            await _abandon(connecting, connection)
    if ear.refused.is_set():
        raise UnavailableError(f"{url} does not let {credential.principal!r} in: {ear.last}")
    raise UnavailableError(f"{url} cannot be reached within {timeout_s:g} s: {ear.last or 'silence'}")


class _Ear:
    """Hears what happens to one connection."""

    def __init__(self, connection: Connection, name: str, on_error: OnError | None) -> None:
        self.last: Exception | None = None
        self.refused = asyncio.Event()
        self._connection = connection
        self._name = name
        self._on_error = on_error
        self._refused = Complaints(_log, "things were refused by the bus")

    async def complain(self, error: Exception) -> None:
        text = str(error).lower()
        if not self.refused.is_set():
            # What a refused client complains about afterwards is only that its socket was reset.
            self.last = error
        if "authorization violation" in text:
            self.refused.set()
        if "violation" in text or "authentication" in text:
            self._refused.tell("%s: %s: %s", self._name, type(error).__name__, error)
        else:
            _log.info("%s: %s: %s", self._name, type(error).__name__, error)
        if self._on_error is not None:
            self._on_error(error)

    async def disconnected(self) -> None:
        self._connection.fail_answers("the connection to the bus broke")

    async def reconnected(self) -> None:
        _log.info("%s: connected again", self._name)
        for listener in tuple(self._connection.reconnect_listeners):
            listener()


async def _abandon(connecting: asyncio.Future[None], connection: Connection) -> None:
    # The client swallows a cancellation in some places, so once may not be enough.
    for _ in range(10):
        if connecting.done():
            break
        connecting.cancel()
        await asyncio.wait({connecting}, timeout=0.1)
    if connecting.done() and not connecting.cancelled():
        connecting.exception()
    await disconnect(connection)


async def disconnect(connection: Connection, *, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
    """Send what waits, if the server takes it within `timeout_s`, and close."""
    # Else the client would take the end of its socket for a reason to open another one.
    connection.options["allow_reconnect"] = False
    closing = asyncio.ensure_future(_drain_and_close(connection))
    done, _ = await asyncio.wait({closing}, timeout=timeout_s)
    # The server may read nothing, or the client may hold a socket that it opened while it counted as closed already:
    # what is left is thrown away.
    _abort(connection)
    if not done:
        closing.cancel()
        await asyncio.wait({closing}, timeout=timeout_s)
    if closing.done() and not closing.cancelled() and closing.exception() is not None:
        _log.debug("closed the hard way: %s", closing.exception())
    connection.reconnect_listeners.clear()
    connection._taps.clear()
    if connection._alarm is not None:
        connection._alarm.cancel()


def _abort(connection: Connection) -> None:
    writer = getattr(connection._transport, "_io_writer", None)
    if writer is not None:
        writer.transport.abort()


async def _drain_and_close(connection: Connection) -> None:
    try:
        if connection.is_connected:
            await connection.drain()
    except (nats.errors.Error, OSError) as error:
        _log.debug("closing without draining: %s", error)
    finally:
        await connection.close()
