"""Keys and those who hold them, with the real processes and the real command line."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from leasehold import Client
from leasehold.events.errors import InvalidInputError, RefusedError, UnavailableError
from tests.support.cluster import free_ports
from tests.support.running import HOST, Done, RunningUp, leasehold, running_up, watching

SECRET = "x" * 9


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningUp]:
    """One `up` with two allocators for all tests of this page."""
    with running_up(tmp_path_factory.mktemp("up") / "data", "--allocators", "2") as running:
        yield running


def add(up: RunningUp, role: str, name: str, *arguments: str) -> Path:
    """A key for somebody."""
    path = up.data.parent / f"{name}.json"
    done = leasehold(up.data, "credentials", "add", role, name, "--out", str(path), *arguments)
    assert done.code == 0, done.err
    return path


def listed(up: RunningUp) -> dict[str, dict[str, object]]:
    """Who is registered, by role and name."""
    rows = leasehold(up.data, "credentials", "list", "--json").objects
    return {f"{row['role']} {row['name']}".strip(): row for row in rows}


def as_holder(key: Path, *arguments: str, principal: str = "") -> Done:
    """The command line with a key alone: no data directory is named."""
    return leasehold(None, *arguments, "--credentials", str(key), LEASEHOLD_PRINCIPAL=principal)


def free_device(up: RunningUp) -> str:
    rows = leasehold(up.data, "devices", "--json").objects
    return str(next(row["name"] for row in rows if row["state"] == "free"))


def test_up_makes_keys_for_its_own(up: RunningUp) -> None:
    """Two allocators run, each with its files; the keys are registered, and connection.json holds none."""
    assert (up.data / "allocator.sqlite").exists()
    assert (up.data / "allocator-2.sqlite").exists()
    assert {"keeper keeper", "allocator allocator", "query query", f"agent {HOST}"} < set(listed(up))
    told = json.loads((up.data / "connection.json").read_text())
    assert "seed" not in str(told)
    assert "password" not in told


def test_another_lease_with_a_guessed_token(up: RunningUp) -> None:
    """Who guesses the token of another's lease is refused (`not_yours`), and the lease goes on."""
    mallory = add(up, "scheduler", "mallory")
    assert mallory.stat().st_mode & 0o077 == 0
    name = free_device(up)
    lease = leasehold(up.data, "lease", name, "--for", "victim", "--json").object
    for verb in ("release", "renew"):
        done = as_holder(mallory, verb, lease["lease"], "--token", str(lease["token"]), "--json")
        assert (done.code, done.object["code"]) == (3, "not_yours"), done.err
    assert leasehold(up.data, "leases", "--holder", "victim", "--json").object["lease"] == lease["lease"]
    assert leasehold(up.data, "release", lease["lease"], "--token", str(lease["token"])).code == 0
    own = as_holder(mallory, "lease", name, "--for", "mine", "--json").object
    rows = leasehold(up.data, "history", own["lease"], "--json").objects
    assert "mallory" in str(rows[0]["event"])
    assert as_holder(mallory, "release", own["lease"], "--token", str(own["token"])).code == 0


def test_another_name_is_told_before_it_is_sent(up: RunningUp) -> None:
    """Asking in another's name, or for what the role may not, is a usage error that says so, and nothing is refused."""
    carol = add(up, "scheduler", "carol")
    done = as_holder(carol, "leases", principal="root")
    assert done.code == 2
    assert "the credential is carol's" in done.err
    done = as_holder(carol, "confirm-free", "pci_x", "--reason", "I say so")
    assert done.code == 2
    assert "scheduler" in done.err
    auditor = add(up, "auditor", "arthur")
    done = as_holder(auditor, "lease", "pci_x", "--for", "me")
    assert done.code == 2
    assert "auditor" in done.err
    assert listed(up)["scheduler carol"]["refused"] == 0


def test_an_auditor_reads_the_whole_log(up: RunningUp) -> None:
    """With a key alone: verify, watch, history, status."""
    key = add(up, "auditor", "alice")
    verified = as_holder(key, "verify")
    assert verified.code == 0, verified.err
    assert "verified" in verified.out
    assert as_holder(key, "status", "--json").object["devices"] > 0
    process = subprocess.Popen(
        [sys.executable, "-m", "leasehold", "watch", "--json", "--since", "0", "--credentials", str(key)],
        stdout=subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if not name.startswith("LEASEHOLD_")},
    )
    assert process.stdout is not None
    try:
        assert json.loads(process.stdout.readline())["type"].startswith("ledger_started")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert next(iter(watching(up, since=0)))["type"].startswith("ledger_started")


def test_a_watcher_of_another_host_by_itself(up: RunningUp) -> None:
    """`run watcher` with an agent's key reports its own host; for another one it does not start."""
    key = add(up, "agent", "h9")
    done = leasehold(up.data.parent / "h9", "run", "watcher", "--credentials", str(key), "--host", "h8")
    assert done.code == 2
    assert "agent of h9" in done.err
    command = [sys.executable, "-m", "leasehold", "run", "watcher", "--credentials", str(key)]
    with subprocess.Popen([*command, "--data", str(up.data.parent / "h9")]) as process:
        try:
            for row in watching(up, since=0):
                if row["type"].startswith("picture_completed") and "h9" in json.dumps(row["event"]):
                    break
        finally:
            process.terminate()
    assert {row["host"] for row in leasehold(up.data, "hosts", "--json").objects} == {HOST, "h9"}


async def test_removed_and_refused(up: RunningUp) -> None:
    """A removed key is refused at once, by name `nobody`, and counted; a second of one name is not made."""
    key = add(up, "scheduler", "former")
    again = leasehold(up.data, "credentials", "add", "scheduler", "former", "--out", f"{key}.2")
    assert again.code == 2
    assert "there already" in again.err
    async with Client(credentials=key) as client:
        assert (await client.status()).devices > 0
        assert client.principal == "former"
        removed = leasehold(up.data, "credentials", "remove", "former")
        assert removed.code == 0, removed.err
    with pytest.raises(UnavailableError, match="does not let 'former' in"):
        async with Client(credentials=key):
            pass
    with pytest.raises(InvalidInputError, match="nothing can be asked in the name of eve"):
        async with Client(credentials=add(up, "scheduler", "later"), principal="eve"):
            pass
    # `up` looks once a second.
    while "nobody" not in listed(up):
        pass
    assert int(str(listed(up)["nobody"]["refused"])) >= 1
    with pytest.raises(RefusedError):
        async with Client(up.data) as client:
            await client.release(4352, 1)


def test_what_another_server_must_be_told(up: RunningUp) -> None:
    """`show-config` prints accounts and users, without a secret."""
    add(up, "scheduler", "shown")
    text = leasehold(up.data, "credentials", "show-config").out
    public = str(listed(up)["scheduler shown"]["public_key"])
    assert public in text
    assert "include" not in text.replace("includes", "")
    assert "leasehold.local.req.shown.lease" in text
    for path in (up.data / "credentials").iterdir():
        assert json.loads(path.read_text())["seed"] not in text


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("run", "nats", "--listen", "0.0.0.0:0"), "listen"),
        (("run", "nats", "--listen", "nonsense"), "listen"),
        (("run", "nats", "--listen", "127.0.0.1:0", "--tls-cert", "/nothing.pem"), "tls_key"),
        (("run", "nats", "--cluster-route", "127.0.0.1:1"), "cluster_listen"),
        (("run", "nats", "--cluster-listen", "127.0.0.1:0"), "server_name"),
        (("run", "nats", "--cluster-listen", "0.0.0.0:1", "--server-name", "a"), "cluster_listen"),
        (("run", "nats", "--cluster-listen", "127.0.0.1:1", "--cluster-secret", SECRET), "--cluster-secret"),
        (("up", "--nats", "nats://127.0.0.1:1"), "nats"),
    ],
)
def test_unsafe_or_incomplete_is_refused(tmp_path: Path, arguments: tuple[str, ...], field: str) -> None:
    """Addresses that others reach without TLS, halves of what is needed, and a secret that every user of the machine
    could read: a usage error, and nothing is written.
    """
    where = () if arguments[0] == "up" else ("--data", str(tmp_path / "d"))
    done = leasehold(tmp_path / "data", *arguments, *where, LEASEHOLD_CLUSTER_SECRET=SECRET)
    assert done.code == 2, done.err
    assert field in done.err
    assert not (tmp_path / "d" / "nats").exists()


def test_servers_of_a_cluster_need_a_secret(tmp_path: Path) -> None:
    """Without one, anybody on the machine could join as a server, and write what he likes."""
    arguments = ("run", "nats", "--cluster-listen", "127.0.0.1:1", "--server-name", "a", "--data", str(tmp_path / "d"))
    done = leasehold(None, *arguments)
    assert done.code == 2 and "cluster_secret" in done.err and "LEASEHOLD_CLUSTER_SECRET" in done.err


def test_up_joins_a_server_that_is_not_its_own(tmp_path: Path) -> None:
    """With `--nats` and a directory of keys everything works on another's server; with wrong ones it does not start."""
    data, keys = tmp_path / "nats", tmp_path / "keys"
    keys.mkdir()
    (port,) = free_ports(1)
    url = f"nats://127.0.0.1:{port}"
    for role in ("keeper", "allocator", "query", "archive", "feed", "agent", "operator"):
        name = HOST if role == "agent" else role
        made = leasehold(
            None, "credentials", "add", role, name, "--data", str(data), "--cluster", "local", "--url", url,
            "--out", str(keys / f"{role}.json"),
        )  # fmt: skip
        assert made.code == 0, made.err
        assert "when the server starts" in made.out
    command = [sys.executable, "-m", "leasehold", "run", "nats", "--data", str(data), "--listen", f"127.0.0.1:{port}"]
    arguments = ("--nats", url, "--credentials", str(keys))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert url in server.stdout.readline()
            with running_up(tmp_path / "data", *arguments) as up:
                assert set(up.children()) == {"allocator", "query", "archive", "feed", "watcher"}
                lease = leasehold(up.data, "lease", free_device(up), "--for", "x", "--json")
                assert lease.code == 0, lease.err
                assert leasehold(up.data, "verify").code == 0
            wrong = leasehold(tmp_path / "other", "up", *arguments, "--host", "elsewhere")
            assert wrong.code == 2
            assert "agent.json is for host" in wrong.err
            (keys / "query.json").unlink()
            assert leasehold(tmp_path / "other", "up", *arguments, "--host", HOST).code == 4
        finally:
            server.terminate()
