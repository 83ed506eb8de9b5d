"""Each habit of the NATS client that is changed for ours, and those that are relied on, on a real server."""

import asyncio
import contextlib
import logging
import re
from pathlib import Path

import pytest

from leasehold.events.errors import UnavailableError
from leasehold.services import connection
from tests.support.proxy import Flow, proxy_to
from tests.support.servers import TESTER, connected, server_at


async def test_nothing_is_kept_for_later(tmp_path: Path) -> None:
    """What is published or asked while disconnected is refused, and nothing of it is sent when the wire is back."""
    async with server_at(tmp_path / "data") as server, proxy_to(server.url) as proxy, connected(server.url) as observer:
        heard: list[bytes] = []
        arrived = asyncio.Event()

        def hear(_subject: bytes, _reply: bytes, body: bytes, _headers: bytes | None) -> None:
            heard.append(body)
            arrived.set()

        await observer.listen("some.subject", hear)
        await observer.flush()
        async with connected(proxy.url) as client:
            back = asyncio.Event()
            client.reconnect_listeners.add(back.set)
            proxy.up.flow = Flow.HOLD
            asking = asyncio.ensure_future(client.ask("$JS.API.INFO", timeout_s=100))
            await proxy.up.wait_for(b"$JS.API.INFO")
            proxy.cut()
            with pytest.raises(UnavailableError, match="broke"):
                await asyncio.wait_for(asking, 20)
            with pytest.raises(UnavailableError):
                await client.publish("some.subject", b"too early")
            with pytest.raises(UnavailableError):
                await client.ask("some.subject", b"too early as well", timeout_s=5)
            await asyncio.wait_for(back.wait(), 20)
            await client.publish("some.subject", b"now")
            await asyncio.wait_for(arrived.wait(), 20)
        assert heard == [b"now"]


async def test_an_error_of_the_server_does_not_close_for_good(tmp_path: Path) -> None:
    """A server that calls us slow, and drops us, is connected to again, and the error is told."""
    errors: list[str] = []
    async with server_at(tmp_path / "data") as server, proxy_to(server.url) as proxy:
        client = await connection.connect(
            proxy.url, credential=TESTER, name="slow", on_error=lambda error: errors.append(str(error))
        )
        try:
            back = asyncio.Event()
            client.reconnect_listeners.add(back.set)
            (link,) = proxy.links
            link.client.write(b"-ERR 'Slow Consumer'\r\n")
            link.client.close()
            await asyncio.wait_for(back.wait(), 20)
            assert any("slow consumer" in error for error in errors)
            assert (await client.ask("$JS.API.INFO", timeout_s=5)).status == 0
        finally:
            await connection.disconnect(client)


async def test_a_broken_connection_fails_its_questions_at_once(tmp_path: Path) -> None:
    """Who waits for an answer hears of the break, long before the time-out."""
    async with server_at(tmp_path / "data") as server, proxy_to(server.url) as proxy, connected(proxy.url) as client:
        proxy.up.flow = Flow.HOLD
        asking = asyncio.ensure_future(client.ask("$JS.API.INFO", timeout_s=100))
        await proxy.up.wait_for(b"$JS.API.INFO")
        proxy.cut()
        with pytest.raises(UnavailableError, match="broke"):
            await asyncio.wait_for(asking, 20)


async def test_a_question_without_an_answer_ends_in_time(tmp_path: Path) -> None:
    """Nobody there is told at once by the server's own status; silence ends with the time-out."""
    async with server_at(tmp_path / "data") as server, connected(server.url) as client:
        assert (await client.ask("nobody.here", timeout_s=100)).status == 503
        await client.listen("silent.one", lambda *_: None)
        with pytest.raises(UnavailableError, match=r"silent\.one within 0\.05 s"):
            await client.ask("silent.one", timeout_s=0.05)


async def test_a_handler_that_fails_does_not_end_the_reading(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An exception in a handler is logged, and the messages after it arrive."""
    async with server_at(tmp_path / "data") as server, connected(server.url) as client:
        heard: list[bytes] = []
        done = asyncio.Event()

        def hear(_subject: bytes, _reply: bytes, body: bytes, _headers: bytes | None) -> None:
            if body == b"bad":
                raise ValueError("cannot be taken")
            heard.append(body)
            done.set()

        await client.listen("some.subject", hear)
        await client.publish("some.subject", b"bad")
        await client.publish("some.subject", b"good")
        await asyncio.wait_for(done.wait(), 20)
    assert heard == [b"good"]
    assert any(record.levelno == logging.ERROR for record in caplog.records)


async def test_closing_does_not_wait_for_a_server_that_reads_nothing() -> None:
    """With a full socket and nobody who reads it, the connection is closed within its bound, down to the socket."""
    release = asyncio.Event()
    ended = asyncio.Event()
    received: list[int] = []

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"max_payload": 1048576}\r\nPONG\r\n')
        await release.wait()
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                received.append(len(data))
        writer.transport.abort()
        ended.set()

    # A small buffer on the reading side, so that the socket is full at once.
    listener = await asyncio.start_server(deaf, "127.0.0.1", 0, limit=1_024)
    port = listener.sockets[0].getsockname()[1]
    client = await connection.connect(f"nats://127.0.0.1:{port}", credential=TESTER, name="deaf")
    for _ in range(12):
        await client.publish("some.subject", b"x" * 1_000_000)
    async with asyncio.timeout(20):
        await connection.disconnect(client, timeout_s=0.5)
        assert client.is_closed
        release.set()
        await ended.wait()
    assert sum(received) < 12_000_000, "what the socket did not take was to be thrown away"
    listener.close()
    await listener.wait_closed()


async def test_an_unreachable_server_is_told_in_time() -> None:
    """Where nobody listens, connecting ends with its bound and says why."""
    with pytest.raises(UnavailableError, match=r"within 0\.3 s"):
        await connection.connect("nats://127.0.0.1:1", credential=TESTER, name="lost", timeout_s=0.3)


async def test_what_is_sent_keeps_its_order_and_its_bound() -> None:
    """Questions and messages of one turn of the loop and of many go out in the order of their sending, also behind a
    socket that is full; then nothing is written past what waits, and no more waits than the bound and one message.
    """
    release, everything = asyncio.Event(), asyncio.Event()
    received = bytearray()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"max_payload": 1048576}\r\nPONG\r\n')
        await release.wait()
        while data := await reader.read(1 << 20):
            received.extend(data)
            if b"#last#" in received[-100:]:
                everything.set()
        writer.transport.abort()

    # A small buffer on the reading side, so that the socket is full at once.
    listener = await asyncio.start_server(slow, "127.0.0.1", 0, limit=1_024)
    port = listener.sockets[0].getsockname()[1]
    client = await connection.connect(f"nats://127.0.0.1:{port}", credential=TESTER, name="hasty")
    asking: list[asyncio.Task[connection.Reply]] = []
    count = full = 0
    try:
        async with asyncio.timeout(20):
            with pytest.raises(UnavailableError, match="no answer"):
                await client.ask("a.question", b"the first one subscribes", timeout_s=0.01)
            for size in (1, 1, 1, *[700_000] * 10, 1, 1, 1):
                await client.publish("a.subject", b"x" * size + b"#%d#" % count)
                questions = [client.ask("a.question", b"#%d#" % (count + i), timeout_s=20) for i in (1, 2)]
                asking += map(asyncio.create_task, questions)
                await asyncio.sleep(0)
                await client.publish_all([(b"a.subject", b"#%d#" % (count + 3))])
                full += not client.publish_at_once([(b"a.subject", b"#%d#" % (count + 4))])
                count += 5
                assert client.pending_data_size <= connection.PENDING_BYTES_MAX + 701_000
            await client.publish_all([(b"a.subject", b"#last#")])
            release.set()
            await everything.wait()
    finally:
        for task in asking:
            task.cancel()
        await client.close()
        listener.close()
        await listener.wait_closed()
    assert 0 < full < 16, "the socket was never full, or always"
    numbers = [int(each) for each in re.findall(rb"#([0-9]+)#", received)]
    assert numbers == sorted(numbers)
    assert len(numbers) == count - full, "what was not sent at once was not to be sent at all"


async def test_a_subject_that_is_none_is_not_sent(tmp_path: Path) -> None:
    """What would break the protocol is refused, as is what the server would drop us for; the connection goes on."""
    async with server_at(tmp_path / "data") as server, connected(server.url) as client:
        for subject in ("", "two words", "a line\r\nPING", " padded"):
            with pytest.raises(UnavailableError, match="subject"):
                await client.ask(subject, timeout_s=5)
        with pytest.raises(UnavailableError, match="payload"):
            await client.ask("some.subject", b"x" * (client.max_payload + 1), timeout_s=5)
        assert (await client.ask("nobody.here", timeout_s=5)).status == 503


async def test_each_question_ends_at_its_own_time(tmp_path: Path) -> None:
    """One timer serves all questions: a short one behind a long one ends first, and a long one is not forgotten."""
    async with server_at(tmp_path / "data") as server, connected(server.url) as client:
        await client.listen("silent.one", lambda *_: None)
        ended: list[float] = []

        async def ask(timeout_s: float) -> None:
            with pytest.raises(UnavailableError, match="silent"):
                await client.ask("silent.one", timeout_s=timeout_s)
            ended.append(timeout_s)

        begun_s = asyncio.get_running_loop().time()
        await asyncio.wait_for(asyncio.gather(*(ask(each) for each in (0.3, 0.1, 0.2, 0.1))), 20)
        assert ended == [0.1, 0.1, 0.2, 0.3]
        assert asyncio.get_running_loop().time() - begun_s >= 0.3


async def test_a_flush_is_behind_what_was_sent_before(tmp_path: Path) -> None:
    """Who has subscribed and flushed hears what another asks right afterwards, however often that is tried."""
    heard: list[bytes] = []
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(server_at(tmp_path / "data"))
        listener = await stack.enter_async_context(connected(server.url, "listener"))
        asker = await stack.enter_async_context(connected(server.url, "asker"))
        for number in range(50):
            await listener.listen(f"flush.{number}", lambda subject, _reply, _body, _headers: heard.append(subject))
            await listener.flush()
            await asker.publish(f"flush.{number}", b"at once")
            await asker.flush()
            await listener.flush()
            assert heard[-1:] == [f"flush.{number}".encode()]


async def test_a_flush_that_nobody_waits_for(tmp_path: Path) -> None:
    """Its pong, when it comes at last, does not end the reading: the connection goes on."""
    async with server_at(tmp_path / "data") as server, proxy_to(server.url) as proxy, connected(proxy.url) as client:
        proxy.up.flow = Flow.HOLD
        flushing = asyncio.ensure_future(client.flush())
        await proxy.up.wait_for(b"PING")
        flushing.cancel()
        await asyncio.wait({flushing})
        assert flushing.cancelled()
        proxy.up.flow = Flow.PASS
        await client.flush()
        assert (await client.ask("$JS.API.INFO", timeout_s=20)).status == 0


async def test_a_flush_is_cancelled_when_its_pong_comes(tmp_path: Path) -> None:
    """Who is told to end at the very moment in which the pong comes ends: that word is not lost."""
    async with server_at(tmp_path / "data") as server, proxy_to(server.url) as proxy, connected(proxy.url) as client:
        proxy.up.flow = Flow.HOLD
        flushing = asyncio.ensure_future(client.flush())
        await proxy.up.wait_for(b"PING")
        await client._process_pong()
        flushing.cancel()
        await asyncio.wait({flushing})
        assert flushing.cancelled()


async def test_what_comes_after_the_end_of_listening_is_nobodys(tmp_path: Path) -> None:
    """What was under way when a listener left is neither answered nor told as an attempt to have us write elsewhere."""
    async with server_at(tmp_path / "data") as server, connected(server.url) as client:
        heard: list[bytes] = []
        subscription = await client.listen("some.subject", lambda subject, *_: heard.append(subject))
        late = (b"some.subject", b"$JS.ACK.LEDGER.x", b"", b"")
        await client._process_msg(subscription._id, *late)
        await client.stop_listening(subscription)
        await client._process_msg(subscription._id, *late)
        assert heard == [b"some.subject"]
        assert not client.dropped.count
