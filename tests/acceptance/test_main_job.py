"""The main job, on this machine's own devices, with the real processes and the real command line."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from leasehold import Client
from leasehold.events.errors import LeaseLostError, RefusedError
from tests.support.running import HOST, RunningUp, leasehold, running_up, watching


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningUp]:
    """One `up` for all tests of this page."""
    with running_up(tmp_path_factory.mktemp("up") / "data") as running:
        yield running


def _free_device(up: RunningUp) -> str:
    free = [row for row in leasehold(up.data, "devices", "--json").objects if row["state"] == "free"]
    assert free, "this machine has no device that could be leased"
    return str(free[0]["name"])


def test_up_says_what_it_did(up: RunningUp) -> None:
    """`up` shows the bus, the data, the weaker promises, the devices and what to type next; its secrets are 0600."""
    for expected in (str(up.data), "nats://127.0.0.1:", "weaker here", "devices", "leasehold lease"):
        assert expected in up.text
    assert set(up.children()) == {"nats-server", "allocator", "query", "archive", "feed", "watcher"}
    kept = [up.data / name for name in ("connection.json", "principals.json", "allocator.sqlite", "query.sqlite")]
    keys = sorted((up.data / "credentials").iterdir())
    roles = ["agent", "allocator", "archive", "feed", "keeper", "launcher", "operator", "query"]
    assert [path.stem for path in keys] == roles
    for path in [*kept, *keys, *(up.data / "nats").iterdir()]:
        assert path.stat().st_mode & 0o077 == 0, path


def test_devices_are_those_of_this_machine(up: RunningUp) -> None:
    """Every PCI function of /sys is listed with libvirt's name, and has all the fields that programs count on."""
    rows = {row["key"]: row for row in leasehold(up.data, "devices", "--json").objects}
    for address in os.listdir("/sys/bus/pci/devices"):
        row = rows[f"pci/{address}"]
        assert row["name"] == "pci_" + address.replace(":", "_").replace(".", "_")
        assert row["host"] == HOST
        assert {"name", "key", "host", "parent", "driver", "state", "reason"} <= set(row)
    for row in rows.values():
        assert not row["parent"] or row["parent"] in rows


def test_what_the_host_lives_on_is_protected(up: RunningUp) -> None:
    """Whatever carries `/` or the default route is protected, says why, and is refused."""
    rows = leasehold(up.data, "devices", "--json").objects
    protected = [row for row in rows if row["state"] == "protected"]
    assert all(row["reason"] for row in protected)
    reasons = " ".join(row["reason"] for row in protected)
    root = os.stat("/").st_dev
    if Path(f"/sys/dev/block/{os.major(root)}:{os.minor(root)}").exists():
        assert "mounted at /" in reasons
    for row in protected[:1]:
        refused = leasehold(up.data, "lease", row["key"], "--for", "x", "--json")
        assert refused.code == 3
        assert refused.object["code"] == "device_protected"


def test_lease_second_lease_stale_token_release(up: RunningUp) -> None:
    """A lease gives lease and token; a second names the holder and exits 3; a wrong token is refused; release frees."""
    name = _free_device(up)
    lease = leasehold(up.data, "lease", name, "--for", "vm one", "--ttl", "60s", "--json")
    assert lease.code == 0, lease.err
    assert {"lease", "token", "holder", "devices"} <= set(lease.object)
    second = leasehold(up.data, "lease", name, "--for", "vm two", "--json")
    assert second.code == 3
    assert second.object["holder"] == "vm one"
    told = leasehold(up.data, "lease", name, "--for", "vm two")
    assert told.code == 3
    assert "vm one" in told.err
    lease_id, token = lease.object["lease"], lease.object["token"]
    wrong = leasehold(up.data, "release", lease_id, "--token", str(token + 1), "--json")
    assert (wrong.code, wrong.object["code"]) == (3, "token_stale")
    renewed = leasehold(up.data, "renew", lease_id, "--token", str(token), "--ttl", "2m", "--json")
    assert renewed.object["ttl_ms"] == 120_000
    released = leasehold(up.data, "release", lease_id, "--token", str(token))
    assert released.code == 0
    again = leasehold(up.data, "release", lease_id, "--token", str(token), "--json")
    assert (again.code, again.object["code"]) == (3, "lease_ended")
    assert _free_device(up) == name


def test_same_request_id_is_the_same_request(up: RunningUp) -> None:
    """Asking again with the same id gives the same lease; another body under it is refused."""
    name = _free_device(up)
    first = leasehold(up.data, "lease", name, "--for", "a", "--request-id", "mine-1", "--json").object
    again = leasehold(up.data, "lease", name, "--for", "a", "--request-id", "mine-1", "--json").object
    assert (first["lease"], first["token"]) == (again["lease"], again["token"])
    other = leasehold(up.data, "lease", name, "--for", "b", "--request-id", "mine-1", "--json")
    assert (other.code, other.object["code"]) == (3, "request_id_reused")
    assert leasehold(up.data, "release", first["lease"], "--token", str(first["token"])).code == 0


def test_history_tells_request_grant_refusal_and_end(up: RunningUp) -> None:
    """The history of a device shows grant with its request, refusals and release, with times and positions."""
    name = _free_device(up)
    lease = leasehold(up.data, "lease", name, "--for", "historian", "--request-id", "hist-1", "--json").object
    leasehold(up.data, "lease", name, "--for", "late comer")
    leasehold(up.data, "release", lease["lease"], "--token", str(lease["token"]))
    rows = leasehold(up.data, "history", name, "--json").objects
    kinds = [row["type"].partition(".")[0] for row in rows]
    assert kinds[0] == "device_appeared"
    tail = kinds[kinds.index("lease_granted", len(kinds) - 4) :]
    assert tail == ["lease_granted", "request_refused", "lease_released", "device_freed"]
    assert "hist-1" in str(rows)
    positions = [row["position"] for row in rows]
    assert positions == sorted(positions)
    text = leasehold(up.data, "history", name).out
    assert "historian" in text


def test_unknown_and_malformed(up: RunningUp) -> None:
    """An unknown device is refused (3); what cannot be meant is a usage error (2); nobody there is unavailable (4)."""
    unknown = leasehold(up.data, "lease", "pci_ffff_ff_1f_7", "--for", "x", "--json")
    assert (unknown.code, unknown.object["code"]) == (3, "device_unknown")
    for arguments in (
        ("lease", "a", "--for", "x", "--ttl", "soon"),
        ("lease", "a", "--for", "x", "--ttl", "999999999d"),
        ("lease", "a", "--for", "bad\x01holder"),
        ("lease", "a"),
        ("release", "lease-one", "--token", "1"),
        ("show", "pci_ffff_ff_1f_7"),
    ):
        done = leasehold(up.data, *arguments)
        assert done.code == 2, (arguments, done.err)
        assert done.err
    assert leasehold(up.data.parent / "nowhere", "devices").code == 4


def test_status_and_verify_while_running(up: RunningUp) -> None:
    """`status` tells how it stands, and `verify` passes on the living ledger."""
    status = leasehold(up.data, "status", "--json").object
    assert status["devices"] > 0
    verified = leasehold(up.data, "verify")
    assert verified.code == 0, verified.err
    assert "verified" in verified.out


def test_a_lease_that_is_not_renewed_expires(up: RunningUp) -> None:
    """Without a renewal the lease expires, not before its time; `watch` and `history` show it; the device is free."""
    name = _free_device(up)
    lease = leasehold(up.data, "lease", name, "--for", "sleeper", "--ttl", "2s", "--json").object
    for row in watching(up, since=lease["position"]):
        if row["type"].startswith("lease_expired") and row["event"]["lease"] == lease["token"]:
            assert row["decided_at_ns"] >= lease["expires_at_ns"]
            break
    rows = leasehold(up.data, "history", lease["lease"], "--json").objects
    assert [row["type"].partition(".")[0] for row in rows] == ["lease_granted", "lease_expired", "device_freed"]
    late = leasehold(up.data, "renew", lease["lease"], "--token", str(lease["token"]), "--json")
    assert (late.code, late.object["code"]) == (3, "lease_ended")
    assert _free_device(up) == name


async def test_python_client_renews_and_releases(up: RunningUp) -> None:
    """`async with client.lease(...)` outlives its TTL by renewing, is refused to others meanwhile, and is released."""
    name = await asyncio.to_thread(_free_device, up)
    async with Client(up.data) as client:
        async with client.lease(name, holder="program", ttl_ms=1_500) as lease:
            with pytest.raises(RefusedError) as refused:
                async with client.lease(name, holder="another"):
                    pass
            assert refused.value.refusal_code == "device_held"
            first = (await client.leases(holder="program"))[0]
            async with asyncio.timeout(20):
                while (await client.leases(holder="program"))[0].expires_at_ns < first.expires_at_ns + 3 * 10**9:
                    await client.status()
            lease.check()
        assert not await client.leases(holder="program")
    assert await asyncio.to_thread(_free_device, up) == name


async def test_python_client_learns_that_its_lease_is_gone(up: RunningUp) -> None:
    """A lease that somebody else of the same principal released is lost for its holder, who is told."""
    name = await asyncio.to_thread(_free_device, up)
    async with Client(up.data) as client:
        with pytest.raises(LeaseLostError):
            async with client.lease(name, holder="victim", ttl_ms=1_500) as lease:
                await client.release(lease.id, lease.token)
                async with asyncio.timeout(20):
                    await lease.lost.wait()
                assert not lease.is_valid
