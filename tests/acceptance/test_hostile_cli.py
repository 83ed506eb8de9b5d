"""Garbage and malice on the command line, and around it: one clear line, the right exit code, never a traceback."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from leasehold.services.credentials import ensure_own
from tests.support.not_run import not_run
from tests.support.running import HOST, Done, RunningUp, leasehold, running_up

LONG = "x" * 100_000
BINARY = os.fsdecode(b"\xff\xfe\x80")
FILES = [
    b"", b"{", b"[]", b"\xff\xfe", b'{"url":1}', b'{"url":"nats://h:99999","cluster":"c"}'
]  # fmt: skip
PLACES = [
    "/proc/leasehold", "/dev/null/leasehold", "/tmp/" + "x" * 5_000, "/tmp/a\nb", f"/tmp/{BINARY}"
]  # fmt: skip
WORDS = [None, b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"INFO {}\r\n-ERR 'go away'\r\n", b"\xff" * 99]


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningUp]:
    """One `up` for most of this page."""
    with running_up(tmp_path_factory.mktemp("up") / "data") as running:
        yield running


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("show", LONG), 2),
        (("show", BINARY), 2),
        (("show", ""), 2),
        (("history", "\x1b[2J"), 2),
        (("history", "nothing", "--kind", "planet"), 2),
        (("explain", LONG, "--for", LONG), 2),
        (("devices", "--host", "../.."), 2),
        (("devices", "--host", BINARY), 2),
        (("leases", "--holder", "\n"), 2),
        (("lease", LONG, "--for", "x"), 2),
        (("lease", BINARY, "--for", "x"), 2),
        (("lease", *(["a"] * 65), "--for", "x"), 2),
        (("lease", "a", "--for", BINARY), 2),
        (("lease", "a", "--for", ""), 2),
        (("lease", "a", "--for", "x", "--ttl", "-1s"), 2),
        (("lease", "a", "--for", "x", "--ttl", "9" * 5_000 + "d"), 2),
        (("lease", "a", "--for", "x", "--ttl", "0s"), 2),
        (("lease", "a", "--for", "x", "--request-id", "a b"), 2),
        (("lease", "a", "--for", "x", "--request-id", LONG), 2),
        (("lease", "pci_nothing", "--for", "x"), 3),
        (("renew", "L0", "--token", "1"), 2),
        (("renew", "L1", "--token", "-1"), 2),
        (("release", "L99999999999999999999", "--token", "1"), 2),
        (("release", "L1", "--token", "9" * 400), 2),
        (("release", "L1", "--token", "9" * 5_000), 2),
        (("release", "L1", "--token", "1"), 3),
        (("confirm-free", "a", "--reason", "\n"), 2),
        (("prepare", LONG, "--for", "x"), 2),
        (("prepare", "", "--for", "x"), 2),
        (("prepare", "nobody", "--for", "x"), 3),
        (("prepare", "nobody", "--for", "x", "--pci", "--usb"), 2),
        (("reattach", BINARY), 2),
        (("reattach", "nobody", "--host", "../.."), 2),
        (("hostdevs", "--domain", "\x1b[2J"), 2),
        (("drift", LONG), 2),
        (("drift", "--host", "nowhere"), 2),
        (("revoke", "L0", "--reason", "x"), 2),
        (("revoke", "L1", "--reason", "\n"), 2),
        (("revoke", "L1", "--reason", "x"), 3),
        (("dead", "..", "--reason", "x"), 2),
        (("dead", "nowhere", "--reason", ""), 2),
        (("nodedev", "detach", "pci_nothing"), 3),
        (("nodedev", "detach", "pci_nothing", "--driver", LONG), 2),
        (("nodedev", "reset", ""), 2),
        (("nodedev", "vfs", "pci_nothing", "-1"), 2),
        (("nodedev", "vfs", "pci_nothing", "9" * 400), 2),
        (("watch", "--since", "-5-5"), 2),
        (("watch", "--since", str(2**53)), 2),
        (("watch", "--ledger", "--since", str(2**52)), 2),
        (("watch", "--ledger", "--host", "h1"), 2),
        (("watch", "--host", "*"), 2),
        (("watch", "--kind", ">"), 2),
        (("watch", "--device", "h1/*"), 2),
        (("watch", "--lease", LONG), 2),
        (("watch", "--tenant", "_"), 2),
        (("credentials", "add", "scheduler", "w@_"), 2),
        (("run", "planet"), 2),
        (("nonsense",), 2),
        (("up", "--cluster", "Bad Cluster"), 2),
        (("up", "--host", "Bad.Host"), 2),
        (("up", "--nats", "nats://[::1"), 2),
        (("up", "--nats", "nats://127.0.0.1:99999"), 2),
        (("up", "--nats", "::"), 2),
        (("run", "watcher", "--host", "Bad.Host"), 2),
    ],
    ids=lambda value: " ".join(each[:20] for each in value) if isinstance(value, tuple) else None,
)
def test_arguments_of_garbage(up: RunningUp, arguments: tuple[str, ...], code: int) -> None:
    """A usage error is 2, a refusal 3, with something to read on standard error and no traceback."""
    done = leasehold(up.data, *arguments)
    assert done.code == code, f"{done.out[-300:]}{done.err[-300:]}"
    _is_clear(done)


def _is_clear(done: Done) -> None:
    assert done.err.strip()
    assert "Traceback" not in done.err
    assert "Error(" not in done.err
    assert len(done.err) < 1_500, f"{len(done.err)} characters"
    assert "\x1b" not in done.err


@pytest.mark.parametrize(
    ("environment", "code"),
    [
        ({"LEASEHOLD_PRINCIPAL": "a.b"}, 2),
        ({"LEASEHOLD_PRINCIPAL": "\n"}, 2),
        ({"LEASEHOLD_PRINCIPAL": BINARY}, 2),
        ({"LEASEHOLD_PRINCIPAL": LONG}, 2),
        ({"LEASEHOLD_DATA": LONG}, 4),
        ({"LEASEHOLD_DATA": BINARY}, 4),
        ({"LEASEHOLD_DATA": "/dev/null"}, 4),
        ({"LEASEHOLD_DATA": "", "HOME": "/proc/nobody", "XDG_STATE_HOME": "", "XDG_RUNTIME_DIR": "/proc"}, 4),
    ],
    ids=lambda value: " ".join(ascii(text[:12]) for text in value.values()) if isinstance(value, dict) else None,
)
def test_environments_of_garbage(up: RunningUp, environment: dict[str, str], code: int) -> None:
    """Names that cannot be meant: usage errors; places where nothing is: unavailable; NUL cannot even be passed."""
    done = leasehold(up.data, "devices", timeout_s=60, **environment)
    assert done.code == code, f"{done.out[-300:]}{done.err[-300:]}"
    _is_clear(done)
    with pytest.raises(ValueError, match="null byte"):
        leasehold(up.data, "devices", LEASEHOLD_PRINCIPAL="a\x00b")


@pytest.mark.parametrize("data", PLACES, ids=lambda each: ascii(each[:20]))
def test_up_where_nothing_can_be_kept(tmp_path: Path, data: str) -> None:
    """A directory that cannot be made, written or named is a usage error in one line, for `up` and for its roles."""
    for command in ("up", "run"):
        arguments = [command, *(["allocator"] if command == "run" else [])]
        done = leasehold(tmp_path / "x", *arguments, "--data", data, timeout_s=20)
        assert done.code in ((2,) if command == "up" else (1, 2)), done.err
        _is_clear(done)
    assert leasehold(tmp_path / "x", "verify", "--data", data).code in (2, 4)


def test_up_in_the_directory_of_another_user(tmp_path: Path) -> None:
    """What belongs to somebody else is left alone."""
    if os.geteuid() != 0:
        not_run("only root can make a directory belong to another user")
    data = tmp_path / "theirs"
    data.mkdir()
    os.chown(data, 65_534, 65_534)
    done = leasehold(data, "up", timeout_s=20)
    assert done.code == 2, done.err
    assert "belongs to another user" in done.err
    assert list(data.iterdir()) == []


def test_a_second_up_leaves_the_first_alone(up: RunningUp) -> None:
    """It is told who has the directory and ends; the first goes on, and is still found without being named."""
    done = leasehold(up.data, "up", "--host", HOST, timeout_s=30)
    assert done.code == 1, done.err
    assert "is in use by nats-server pid" in done.err
    _is_clear(done)
    found = leasehold(up.data, "hosts", "--json", LEASEHOLD_DATA="")
    assert found.code == 0, found.err
    assert leasehold(up.data, "verify").code == 0


def _spoken_to(listener: socket.socket, words: bytes) -> None:
    while True:
        try:
            peer, _ = listener.accept()
        except OSError:
            return
        with peer:
            peer.sendall(words)


@pytest.mark.parametrize("words", WORDS, ids=lambda each: ascii(each)[:20])
def test_a_connection_that_leads_nowhere(tmp_path: Path, words: bytes | None) -> None:
    """A file left by a dead `up`, whose port nobody, or somebody else, has: unavailable, and in reasonable time."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    answering = threading.Thread(target=_spoken_to, args=(listener, words or b""))
    if words is None:
        listener.close()
    else:
        answering.start()
    data = tmp_path / "data"
    data.mkdir()
    (data / "connection.json").write_text(json.dumps({"url": f"nats://127.0.0.1:{port}", "cluster": "local"}))
    ensure_own(data, cluster="local", host="h1", operator="me")
    try:
        done = leasehold(data, "lease", "a", "--for", "x", timeout_s=20)
        assert done.code == 4, done.err
        _is_clear(done)
    finally:
        listener.close() if words is None else listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        if words is not None:
            answering.join(10)


@pytest.mark.parametrize("text", FILES)
def test_a_connection_file_of_garbage(tmp_path: Path, text: bytes) -> None:
    """It cannot be read, and is named; `up` writes a new one."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "connection.json").write_bytes(text)
    done = leasehold(data, "devices")
    assert done.code == 4, done.err
    assert "connection.json" in done.err
    _is_clear(done)


def test_up_when_its_port_is_taken(tmp_path: Path) -> None:
    """The port of the last run has been taken by somebody else: `up` takes another, and is found there."""
    data = tmp_path / "data"
    with running_up(data):
        before = json.loads((data / "connection.json").read_text())["url"]
    with socket.create_server(("127.0.0.1", int(before.rpartition(":")[2]))), running_up(data):
        assert json.loads((data / "connection.json").read_text())["url"] != before
        assert leasehold(data, "devices").code == 0


MOMENTS = ("", ".lock", "nats/server.conf", "connection.json", "allocator.log", "query.sqlite")
"""What is there when Ctrl-C is pressed: at first only what `up` has said."""


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_during_the_start(tmp_path: Path, moment: str) -> None:
    """Whenever it comes, `up` ends in good order, leaves nothing running, and can be started again."""
    data = tmp_path / "data"
    command = [sys.executable, "-m", "leasehold", "up", "--data", str(data), "--host", HOST]
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    both: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    # A suite that a shell runs behind its prompt has been told to ignore Ctrl-C, and would hand that on.
    both["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(command, text=True, env=environment, **both) as up:
        assert up.stdout is not None
        try:
            assert "starting in" in up.stdout.readline()
            deadline_s = time.monotonic() + 30
            while moment and not (data / moment).exists():
                assert time.monotonic() < deadline_s
            up.send_signal(signal.SIGINT)
            told = up.stdout.read()
            assert up.wait(30) in (0, 1, 130), told
        finally:
            # What does not end would be waited for without end.
            up.kill()
    assert "Traceback" not in told
    with running_up(data):
        assert leasehold(data, "devices").code == 0
