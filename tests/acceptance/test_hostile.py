"""Garbage and malice on the bus: clear answers, nothing falls over, the ledger stays whole."""

import asyncio
import json
import os
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import nats.errors
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leasehold.events import codec
from leasehold.events.answers import Answer
from leasehold.events.errors import UnavailableError
from leasehold.events.questions import QUESTIONS, Reading
from leasehold.events.subjects import Subjects
from leasehold.services.connection import Connection, Reply, connect, disconnect
from leasehold.services.home import read_connection
from tests.support.damage_bus import CONTROL_LINE_MAX, RawBus, bodies_like, published
from tests.support.running import HOST, RunningUp, leasehold, running_up
from tests.support.servers import TESTER, let_in

SUBJECTS = Subjects("local")
ASK_S = 5.0
BOUNDED = settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
LOG_BYTES_MAX = 512 * 1024


class Bus:
    """A running `up`, and a client of its bus that the server refuses nothing."""

    def __init__(self, up: RunningUp) -> None:
        self.up = up
        self.pids = up.children()
        self._runner = asyncio.Runner()
        self._runner.run(let_in(up.data, self.pids["nats-server"], TESTER))
        self.client = self._runner.run(connect(read_connection(up.data).url, credential=TESTER, name="hostile"))

    def close(self) -> None:
        self._runner.run(disconnect(self.client))
        self._runner.close()

    def run(self, work: Callable[[Connection], Any]) -> Any:
        """Do something on the bus."""
        return self._runner.run(work(self.client))

    def ask(self, subject: str, body: bytes, timeout_s: float = ASK_S) -> Reply:
        async def asked(client: Connection) -> Reply:
            return await client.ask(subject, body, timeout_s=timeout_s)

        reply: Reply = self.run(asked)
        return reply

    def request(self, verb: str, body: bytes, principal: str = "mallory", timeout_s: float = ASK_S) -> Answer:
        reply = self.ask(SUBJECTS.request(principal, verb), body, timeout_s)
        assert reply.status == 0
        return msgspec.json.decode(reply.body, type=Answer)

    def question(self, verb: str, body: bytes) -> Reading:
        reply = self.ask(SUBJECTS.request("mallory", verb), body)
        assert reply.status == 0
        return msgspec.json.decode(reply.body, type=Reading)

    def all_is_well(self) -> None:
        """The same processes, current devices, a lease taken and given back, a ledger in order, and small logs."""
        assert self.up.children() == self.pids
        data = self.up.data
        deadline_s = time.monotonic() + 30
        while any(row["stale"] for row in leasehold(data, "hosts", "--json").objects if row["host"] == HOST):
            assert time.monotonic() < deadline_s, "the host stays stale"
        lease = leasehold(data, "lease", free_device(data), "--for", "survivor", "--json")
        assert lease.code == 0, lease.err
        done = leasehold(data, "release", lease.object["lease"], "--token", str(lease.object["token"]))
        assert done.code == 0, done.err
        verified = leasehold(data, "verify")
        assert verified.code == 0, verified.err
        for path in data.glob("*.log"):
            assert path.stat().st_size < LOG_BYTES_MAX, f"{path.name} has grown to {path.stat().st_size} bytes"


def free_device(data: Path) -> str:
    rows = leasehold(data, "devices", "--host", HOST, "--json").objects
    return str(next(row["name"] for row in rows if row["state"] == "free"))


@pytest.fixture(scope="module")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bus]:
    """One `up` for all storms of this page."""
    with running_up(tmp_path_factory.mktemp("up") / "data") as up:
        bus = Bus(up)
        try:
            yield bus
        finally:
            bus.close()


# --- requests and questions -----------------------------------------------------------------------------------------

GOOD = {
    "lease": {
        "type": "lease.v1", "request_id": "r", "issued_at_ns": 1, "devices": ["pci_x"], "holder": "h", "ttl_ms": 60_000,
        "host": "h1", "force": False,
    },
    "renew": {"type": "renew.v1", "request_id": "r", "issued_at_ns": 1, "lease": 1, "token": 1, "ttl_ms": 0},
    "release": {"type": "release.v1", "request_id": "r", "issued_at_ns": 1, "lease": 1, "token": 1},
    "confirm_free": {"type": "confirm_free.v1", "request_id": "r", "issued_at_ns": 1, "device": "d", "reason": "r"},
    "prepare": {
        "type": "prepare.v1", "request_id": "r", "issued_at_ns": 1, "domain": "web1", "holder": "h", "ttl_ms": 60_000,
        "bus": "pci",
    },
    "reattach": {"type": "reattach.v1", "request_id": "r", "issued_at_ns": 1, "domain": "web1"},
    "operate_device": {
        "type": "operate_device.v1", "request_id": "r", "issued_at_ns": 1, "device": "d", "operation": "detach",
    },
    "revoke": {"type": "revoke.v1", "request_id": "r", "issued_at_ns": 1, "lease": 1, "reason": "r"},
    "declare_dead": {"type": "declare_dead.v1", "request_id": "r", "issued_at_ns": 1, "host": "h1", "reason": "r"},
}  # fmt: skip


def test_requests_of_garbage(bus: Bus) -> None:
    """Each request is answered: decided (too old, as it happens), or invalid with the field and a sentence."""
    outcomes: Counter[str] = Counter()

    @BOUNDED
    @given(verb=st.sampled_from(sorted(GOOD)), body=bodies_like(*GOOD.values()))
    def storm(verb: str, body: bytes) -> None:
        answer = bus.request(verb, body)
        outcomes[answer.outcome] += 1
        assert answer.outcome in ("invalid", "refused"), answer
        if answer.outcome == "invalid":
            assert answer.field
            assert answer.message
            assert len(answer.message) < 1_000

    storm()
    print(outcomes)
    assert outcomes["invalid"] > 50
    bus.all_is_well()


@pytest.mark.parametrize(
    ("verb", "field", "value", "named"),
    [
        ("lease", "ttl_ms", -1, "ttl_ms"),
        ("lease", "ttl_ms", 2**70, "ttl_ms"),
        ("lease", "ttl_ms", 1.5, "ttl_ms"),
        ("lease", "holder", "a\x00b", "holder"),
        ("lease", "holder", "\x1b[2Jnobody", "holder"),
        ("lease", "request_id", "a\nb", "request_id"),
        ("lease", "request_id", "x" * 65, "request_id"),
        ("lease", "devices", [], "devices"),
        ("lease", "devices", ["\x00"], "devices"),
        ("lease", "devices", ["d"] * 65, "devices"),
        ("lease", "devices", "pci_x", "devices"),
        ("lease", "host", "H.1", "host"),
        ("lease", "force", "yes", "force"),
        ("lease", "type", "renew.v1", "type"),
        ("lease", "colour", "red", "colour"),
        ("lease", "issued_at_ns", -1, "issued_at_ns"),
        ("renew", "token", 2**53, "token"),
        ("release", "lease", 0, "lease"),
        ("confirm_free", "reason", "", "reason"),
        ("confirm_free", "device", "x" * 2_000, "device"),
        ("lease", "driver", "e1000e", "driver"),
        ("lease", "unmanaged", 1, "unmanaged"),
        ("prepare", "bus", "scsi", "bus"),
        ("prepare", "domain", "", "domain"),
        ("prepare", "domain", "\x1b[2J", "domain"),
        ("prepare", "ttl_ms", 0, "ttl_ms"),
        ("reattach", "bus", "PCI", "bus"),
        ("reattach", "host", "H.1", "host"),
        ("operate_device", "operation", "unbind", "operation"),
        ("operate_device", "driver", "../vfio-pci", "driver"),
        ("operate_device", "timeout_ms", -1, "timeout_ms"),
        ("revoke", "lease", 0, "lease"),
        ("revoke", "reason", "", "reason"),
        ("revoke", "force", "yes", "force"),
        ("declare_dead", "host", "*", "host"),
        ("declare_dead", "reason", "x" * 600, "reason"),
    ],
)
def test_an_invalid_field_is_named(bus: Bus, verb: str, field: str, value: object, named: str) -> None:
    """The answer names the field that is wrong, and says what is wrong with it."""
    answer = bus.request(verb, json.dumps(GOOD[verb] | {field: value}).encode())
    assert (answer.outcome, answer.field) == ("invalid", named)
    assert answer.message


def test_questions_of_garbage(bus: Bus) -> None:
    """Each question is answered: with what there is, or as invalid with the field and a sentence."""
    outcomes: Counter[str] = Counter()
    good = {"name": "pci", "host": HOST, "after": "", "limit": 5, "kind": "", "min_position": 0, "agent": "watcher"}

    @BOUNDED
    @given(verb=st.sampled_from(sorted(QUESTIONS)), body=bodies_like(good, {"name": "L1"}, {"host": HOST}))
    def storm(verb: str, body: bytes) -> None:
        reading = bus.question(verb, body)
        outcomes[reading.outcome] += 1
        # A position that nobody has reached yet is waited for, and then not to be had.
        assert reading.outcome in ("invalid", "not_found", "ok", "unavailable"), reading
        if reading.outcome == "invalid":
            assert reading.field
            assert reading.message

    storm()
    print(outcomes)
    assert outcomes["invalid"] > 50
    bus.all_is_well()


HEADERS = (b"nonsense\r\n\r\n", b"NATS/1.0\r\n:\r\n\r\n", b"NATS/1.0 \xff\r\n\xfe: \xfd\r\n\r\n")


def test_subjects_and_wires_of_garbage(bus: Bus) -> None:
    """Principals that are none, verbs nobody knows, no place for answers, lines and payloads over every bound."""
    for principal in ("a!b", "*", ">", "a b".replace(" ", "\u00a0"), "x" * 200, "-", "\u202e", "$JS"):
        for verb in ("lease", "list_devices"):
            answer = msgspec.json.decode(bus.ask(f"leasehold.local.req.{principal}.{verb}", b"{}").body, type=Answer)
            assert (answer.outcome, answer.field) == ("invalid", "principal"), (principal, answer)
    assert bus.ask("leasehold.local.req.mallory.nonsense", b"{}").status == 503

    async def too_large(client: Connection) -> None:
        with pytest.raises(nats.errors.MaxPayloadError):
            await client.publish(SUBJECTS.request("mallory", "lease"), b"x" * 10_000_000)

    bus.run(too_large)
    with RawBus(bus.up.data, TESTER) as raw:
        for verb in (*codec.VERBS, *QUESTIONS):
            subject = SUBJECTS.request("mallory", verb).encode()
            raw.publish(subject, b"{}")
            for headers in HEADERS:
                raw.publish_headed(subject, headers, b"{}", b"_INBOX.nobody")
        for verb in (*codec.VERBS, *QUESTIONS):
            for reply in (b"a", SUBJECTS.ledger.encode(), b"$JS.API.STREAM.DELETE.LEDGER"):
                raw.publish(SUBJECTS.request("mallory", verb).encode(), b"{}", reply)
        for subject in (b"$SRV.PING", b"$SRV.INFO", b"$SRV.STATS", b"leasehold.local.alive.h.watcher"):
            raw.publish(subject, b"{}", SUBJECTS.ledger.encode())
        for subject in (b"leasehold.local.req.\xff.lease", b"leasehold.local.req.\xff\xfe.status", b"$SRV.PING.\xff"):
            raw.publish(subject, b"{}", b"_INBOX.nobody")
        raw.publish(b"leasehold.local.obs.\xff\xfe.watcher", b"{}")
        raw.publish(b"leasehold.local.alive.\xff.watcher", b"{}")
        raw.settle()
    _refused_by_server(bus, lambda raw: raw.send(b"PUB leasehold.local.req.a.lease 10000000\r\n" + b"x" * 2_000_000))
    _refused_by_server(bus, lambda raw: raw.publish(b"leasehold.local.req." + b"x" * CONTROL_LINE_MAX + b".lease", b""))
    _refused_by_server(bus, lambda raw: raw.send(os.urandom(2_000)))
    bus.all_is_well()


def _refused_by_server(bus: Bus, send: Callable[[RawBus], None]) -> None:
    with RawBus(bus.up.data, TESTER) as raw:
        try:
            send(raw)
        except ConnectionError:
            return
        # It may be gone before its last words are read: what counts is that the connection is.
        told = raw.last_words()
        assert told == b"" or b"-ERR" in told


# --- what agents say ------------------------------------------------------------------------------------------------

SEEN = {
    "type": "device_seen.v1",
    "device": {"key": "pci/0000:00:1e.0", "name": "pci_0000_00_1e_0", "kind": "pci"},
}
OBSERVED = {
    "type": "observed.v1", "host": HOST, "agent": "watcher", "run": 1, "counter": 1, "observations": [SEEN],
}  # fmt: skip


def _inbox(bus: Bus, body: bytes, subject: str = "") -> None:
    """Into the inbox, whatever it is; the server itself may refuse it."""
    reply = bus.ask(subject or SUBJECTS.observed(HOST, "watcher"), body)
    assert reply.status == 0


def test_observations_of_garbage(bus: Bus) -> None:
    """Whatever lands in the inbox is dropped or taken for what it is; the host's real picture wins in the end."""

    @BOUNDED
    @given(body=bodies_like(OBSERVED, {"type": "observed.v1"}), agent=st.sampled_from(["watcher", "binder", "x" * 32]))
    def storm(body: bytes, agent: str) -> None:
        _inbox(bus, body[:200_000], SUBJECTS.observed(HOST, agent))

    storm()
    for subject in ("leasehold.local.obs.H!.watcher", "leasehold.local.obs.a.b!", f"leasehold.local.obs.{'x' * 200}.w"):
        _inbox(bus, json.dumps(OBSERVED).encode(), subject)
    bus.all_is_well()
    assert "was dropped" in (bus.up.data / "allocator.log").read_text()


def test_lies_about_a_host(bus: Bus) -> None:
    """Another host's words, runs of the future, counters that jump, too many and too large words: none of it lasts."""
    source = bus.question("sync", json.dumps({"host": HOST}).encode())
    run, counter = source.source_run, source.source_counter
    assert run > 0
    lies: list[dict[str, Any]] = [
        {"host": "otherhost"},
        {"agent": "binder"},
        {"run": 2**63 - 1, "counter": 0, "observations": [{"type": "source_starts.v1"}]},
        {"run": 2**63, "counter": 0, "observations": [{"type": "source_starts.v1"}]},
        {"run": -1},
        {"run": run, "counter": 2**53},
        {"run": run, "counter": counter + 1, "observations": [SEEN] * 256},
        {"run": run, "counter": counter + 1, "observations": []},
        {"run": run, "counter": counter + 1, "observations": [_seen(product_name="x" * 9_000)]},
        {"run": run, "counter": counter + 1, "observations": [_seen(key="PCI/0000:00:1E.0")]},
        {"run": run, "counter": counter + 1, "observations": [_seen(iommu_group=2**40)]},
        {"run": run, "counter": counter + 1, "observations": [{"type": "device_gone.v1", "key": "../../etc"}]},
        # From here on these are well said, by somebody who speaks as the host's watcher.
        {"run": run, "counter": 2**53 - 1, "observations": [{"type": "picture_complete.v1", "since": 10**200}]},
        {"run": run + 1, "counter": 0, "observations": [{"type": "source_starts.v1"}]},
        {"run": run + 1, "counter": 1, "observations": [_seen(parent="pci/0000:00:1e.0")]},
        {"run": run + 1, "counter": 2, "observations": [_seen(product_name="\x1b]0;owned\x07\x1b[31m\r\n")]},
        {"run": run + 1, "counter": 3, "observations": [{"type": "source_stops.v1"}]},
    ]
    for lie in lies:
        _inbox(bus, json.dumps(OBSERVED | lie).encode())
    bus.all_is_well()
    after = bus.question("sync", json.dumps({"host": HOST}).encode())
    assert after.source_run > run + 1, "the real watcher speaks under a run of its own"
    shown = leasehold(bus.up.data, "devices").out + leasehold(bus.up.data, "history", "pci/0000:00:1e.0").out
    assert "\x1b" not in shown
    assert "\x07" not in shown


def _seen(**fields: object) -> dict[str, Any]:
    return {**SEEN, "device": {**SEEN["device"], **fields}}  # type: ignore[dict-item]


def test_what_a_device_says_cannot_reach_the_terminal(bus: Bus) -> None:
    """Devices that bear escape sequences and name each other as parents are all listed, in plain characters."""
    keys = ("pci/0000:00:01.0", "pci/0000:00:02.0")
    devices = [
        _seen(key=key, name=f"pci_{index}", parent=keys[1 - index], product_name="\x1b[31mred\x07")["device"]
        for index, key in enumerate(keys)
    ]
    say = OBSERVED | {"host": "liar", "run": time.time_ns()}
    _tell(bus, "liar", say | {"counter": 0, "observations": [{"type": "source_starts.v1"}]})
    seen = [{"type": "device_seen.v1", "device": device} for device in devices]
    closing = {"type": "picture_complete.v1", "since": 1}
    _tell(bus, "liar", say | {"counter": 1, "observations": [*seen, closing]})
    for arguments in (("devices", "--host", "liar"), ("show", "pci_0", "--host", "liar"), ("history", "pci_1")):
        done = leasehold(bus.up.data, *arguments)
        assert done.code == 0, done.err
        assert "\x1b" not in done.out
        assert "\x07" not in done.out
    listed = leasehold(bus.up.data, "devices", "--host", "liar").out
    assert "pci_0" in listed
    assert "pci_1" in listed
    assert leasehold(bus.up.data, "lease", "liar/pci/0000:00:01.0", "--for", "x").code in (0, 3)
    bus.all_is_well()


def _tell(bus: Bus, host: str, message: dict[str, Any]) -> None:
    _inbox(bus, json.dumps(message).encode(), SUBJECTS.observed(host, "watcher"))
    deadline_s = time.monotonic() + 10
    question = json.dumps({"host": host}).encode()
    wanted = (message["run"], message["counter"])
    while ((now := bus.question("sync", question)).source_run, now.source_counter) != wanted:
        assert time.monotonic() < deadline_s


def test_heartbeats_of_garbage(bus: Bus) -> None:
    """Thousands of heartbeats of nobody and of nonsense: the watcher is heard all the same, the log stays short."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    huge = b'{"run":99999999999999999999999,"counter":-1}'
    bodies = [b"", b"null", b"[]", b'{"run":"x"}', huge, b"\xff", b"[" * 9_000]
    with RawBus(bus.up.data, TESTER) as raw:
        for number in range(5_000):
            host = HOST if chance.random() < 0.5 else f"ghost{number}"
            body = chance.choice(bodies) if chance.random() < 0.7 else b'{"run":%d,"counter":0}' % number
            raw.publish(SUBJECTS.alive(host, "watcher").encode(), body, chance.choice([b"", b"_INBOX.nobody", b"a.b"]))
        raw.settle()
    bus.all_is_well()


AT_A_TIME = 256
FLOOD = 60_000


def _waves(data: Path, *, wait: bool) -> Iterator[int]:
    """Requests of one principal in waves, with or without waiting for their answers; yields how many it were so far."""
    garbage = json.dumps(GOOD["lease"] | {"ttl_ms": -1}).encode()
    messages = [garbage, garbage, garbage, json.dumps(GOOD["lease"]).encode()] * (AT_A_TIME // 4)
    subject = SUBJECTS.request("flooder", "lease").encode()
    with RawBus(data, TESTER) as raw:
        if wait:
            raw.listen(b"_INBOX.flood.*")
        for sent in range(0, FLOOD, AT_A_TIME):
            # Each answer is allowed once, at its own subject.
            waiting = enumerate(messages, start=sent)
            raw.send(b"".join(published(subject, body, b"_INBOX.flood.%d" % number) for number, body in waiting))
            if wait:
                raw.take(AT_A_TIME)
            yield sent + AT_A_TIME
        raw.settle()


def _ask_calmly(bus: Bus, request_id: str, timeout_s: float) -> Answer:
    body = GOOD["lease"] | {"request_id": request_id, "issued_at_ns": time.time_ns()}
    return bus.request("lease", json.dumps(body).encode(), principal="calm", timeout_s=timeout_s)


def _is_decided(answer: Answer) -> bool:
    return answer.refusal is not None and answer.refusal.code == "device_unknown"


def test_a_flood_of_one_does_not_drown_another(bus: Bus) -> None:
    """While one principal keeps 256 requests waiting at any time, each of another's is decided within a second."""
    flooding = threading.Thread(target=lambda: deque(_waves(bus.up.data, wait=True), maxlen=0))
    flooding.start()
    took: list[float] = []
    try:
        while flooding.is_alive():
            began_s = time.monotonic()
            assert _is_decided(_ask_calmly(bus, f"calm-{len(took)}", ASK_S))
            took.append(time.monotonic() - began_s)
    finally:
        flooding.join(60)
    print(f"{len(took)} took {sorted(took)[len(took) // 2] * 1e3:.1f} ms, at most {max(took) * 1e3:.0f} ms")
    assert max(took) < 1
    bus.all_is_well()


def test_a_flood_that_waits_for_nothing_passes(bus: Bus) -> None:
    """More than can be read is sent without a pause: what was asked meanwhile is decided soon after, asked again."""
    for _ in _waves(bus.up.data, wait=False):
        pass
    deadline_s = time.monotonic() + 20
    answer = Answer(outcome="")
    while not _is_decided(answer):
        assert time.monotonic() < deadline_s, answer
        with suppress(UnavailableError):
            answer = _ask_calmly(bus, "calm-after-all", 1.2)
    bus.all_is_well()
