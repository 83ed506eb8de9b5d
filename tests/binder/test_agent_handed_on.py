"""Tokens that are handed on, through real servers and processes to the door of a host with a played kernel."""

import asyncio
import signal
from pathlib import Path

import msgspec
import pytest

from leasehold.events.errors import RefusedError
from leasehold.projections.handnotes import Note
from leasehold.services.asking import lease_request
from leasehold.services.schedule_asking import reserve_request, switch_request, transfer_request
from tests.binder.kernel import GPU, GPU_SOUND, NIC, Kernel, pci
from tests.binder.stage import HOST, WAIT_S, Stage, staged, until
from tests.binder.test_agent import UUID, WEB

NIC_KEY = pci(NIC)
GPU_KEYS = (pci(GPU), pci(GPU_SOUND))


class _File(msgspec.Struct):
    devices: tuple[Note, ...]


def floor_on_disk(stage: Stage) -> int:
    """The card's, in the binder's notes."""
    path = stage.bus.data / "binder.json"
    found = msgspec.json.decode(path.read_bytes(), type=_File).devices if path.exists() else ()
    return next((note.floor for note in found if note.key == NIC_KEY), 0)


async def answers(stage: Stage) -> bool:
    """Whether there is somebody at the door."""
    try:
        await stage.asks(op="status")
    except OSError:
        return False
    return True


async def test_a_token_that_was_given_on(short: Path, kernel: Kernel) -> None:
    """As soon as the transfer is heard, the door lets the new token act and not the old one, and the floor is on disk;
    a binder that was killed then, and comes again while nobody decides or tells, lets the old one act no more either.
    """
    async with staged(short, kernel) as stage:
        request = lease_request((NIC_KEY,), holder="vm:web1", ttl_ms=600_000, host=HOST)
        async with stage.binder_process() as binder:
            await until(stage.is_managed)
            granted = await stage.client.ask(request)
            await until(lambda: stage.is_prepared(NIC_KEY))
            await until(lambda: stage.vouches(NIC_KEY, granted.token))
            moved = await stage.client.ask(transfer_request(granted.lease, granted.token, "vm:web2"))
            await until(lambda: stage.vouches(NIC_KEY, moved.token))
            said = await stage.asks(op="check", device=NIC_KEY, token=granted.token)
            assert (said["ok"], said["code"]) == (False, "token_stale"), said

            async def is_on_disk() -> bool:
                return await asyncio.to_thread(floor_on_disk, stage) == moved.token

            await until(is_on_disk)
            assert kernel.driver(NIC) == "vfio-pci", "it stays with its holder"
            binder.kill()
            assert await asyncio.wait_for(binder.wait(), WAIT_S) == -signal.SIGKILL
        for role in ("feed", "query", "allocator"):
            stage.processes[role].terminate()
            await asyncio.wait_for(stage.processes[role].wait(), WAIT_S)
        stage.door.unlink()
        async with stage.binder_process():
            await until(lambda: answers(stage))
            said = await stage.asks(op="check", device=NIC_KEY, token=granted.token)
            assert (said["ok"], said["code"]) == (False, "token_stale"), said
            said = await stage.asks(op="check", device=NIC_KEY, token=moved.token)
            assert (said["ok"], said["code"]) == (False, "cut_off"), said


async def test_a_domain_moves(short: Path, kernel: Kernel) -> None:
    """From one card to another: what is reserved is prepared, and opens nothing; the switch opens it, and the card that
    the domain had is its host's again.
    """
    async with staged(short, kernel) as stage, stage.binder():
        ask = stage.client.ask
        source = await ask(lease_request((NIC_KEY,), holder="web1", ttl_ms=600_000, host=HOST, domain=UUID))
        await until(lambda: stage.is_prepared(NIC_KEY))
        there = await ask(reserve_request(source.lease, source.token, GPU_KEYS, ttl_ms=600_000, host=HOST))
        await until(lambda: stage.is_prepared(GPU_KEYS[0]))
        said = await stage.asks(op="check", device=GPU_KEYS[0], token=there.token)
        assert (said["ok"], said["code"]) == (False, "lease_reserved"), said
        said = await stage.asks(op="start", devices=list(GPU_KEYS), **WEB)
        assert (said["ok"], said["code"]) == (False, "lease_reserved"), said
        assert await stage.vouches(NIC_KEY, source.token)
        switched = await ask(switch_request(there.lease, there.token))
        await until(lambda: stage.vouches(GPU_KEYS[0], switched.token))
        for key, token in ((GPU_KEYS[0], there.token), (GPU_KEYS[1], there.token), (NIC_KEY, source.token)):
            said = await stage.asks(op="check", device=key, token=token)
            assert (said["ok"], said["code"]) == (False, "token_stale"), said
        assert (await stage.asks(op="start", devices=list(GPU_KEYS), **WEB))["ok"]
        await until(lambda: stage.is_free(NIC_KEY))
        assert (kernel.driver(NIC), kernel.driver(GPU)) == ("e1000e", "vfio-pci")
        with pytest.raises(RefusedError):
            await stage.client.renew(source.lease, source.token)
