"""Leases that become bound devices, and ends that give them back, through real servers and a played kernel."""

import asyncio
import errno
import os
import signal
from pathlib import Path

import pytest

from leasehold.events import limits
from leasehold.events.errors import RefusedError
from leasehold.services.asking import lease_request
from tests.binder.kernel import GPU, GPU_SOUND, NIC, STICK, Kernel, pci, usb
from tests.binder.stage import HOST, WAIT_S, staged, until

NIC_KEY, STICK_KEY = pci(NIC), usb(STICK)
UUID = "6f6b0d4e-8e5a-4f2b-9f0c-1d2e3f4a5b6c"
WEB = {"hypervisor": "qemu", "uuid": UUID, "name": "web1"}


async def test_a_lease_is_handed_over_and_given_back(short: Path, kernel: Kernel) -> None:
    """A card goes to vfio-pci by its lease, and back to its driver by the release; only then is it free."""
    async with staged(short, kernel) as stage, stage.binder():
        async with stage.client.lease(NIC_KEY, host=HOST, holder="vm:web1", wait_prepared=True) as lease:
            assert (await stage.binding(NIC_KEY), kernel.driver(NIC)) == ("prepared", "vfio-pci")
            said = await stage.asks(op="check", device=NIC_KEY, token=lease.token)
            assert said["ok"], said
            assert said["holder"] == "vm:web1"
        await until(lambda: stage.is_free(NIC_KEY))
        assert kernel.driver(NIC) == "e1000e"
        said = await stage.asks(op="check", device=NIC_KEY, token=lease.token)
        assert (said["ok"], said["code"]) == (False, "token_stale"), said


async def test_what_administrators_have_done(short: Path, kernel: Kernel) -> None:
    """A card is detached, leased as it is then, and reattached; what is leased is not touched."""
    async with staged(short, kernel) as stage, stage.binder():
        client = stage.client
        answer = await client.detach(NIC_KEY, host=HOST)
        assert (answer.state, kernel.driver(NIC)) == ("done", "vfio-pci"), answer
        async with client.lease(NIC_KEY, host=HOST, holder="vm:web1", wait_prepared=True):
            with pytest.raises(RefusedError):
                await client.reattach(NIC_KEY, host=HOST)
        await until(lambda: stage.is_free(NIC_KEY))
        assert kernel.driver(NIC) == "vfio-pci"
        assert (await client.reset(NIC_KEY, host=HOST)).state == "done"
        assert (await client.reattach(NIC_KEY, host=HOST)).state == "done"
        assert kernel.driver(NIC) == "e1000e"
        kernel.refuse["reset"] = errno.EIO
        failed = await client.reset(NIC_KEY, host=HOST)
        assert failed.state == "failed"
        assert "reset" in failed.message, failed


async def test_what_cannot_be_prepared(short: Path, kernel: Kernel) -> None:
    """One function of a card is refused by the stub: its lease fails, says why, and both are their drivers' again."""
    async with staged(short, kernel) as stage, stage.binder():
        kernel.refuse[f"bind {GPU_SOUND}"] = kernel.refuse[f"drivers_probe {GPU_SOUND}"] = errno.EBUSY
        request = lease_request((pci(GPU), pci(GPU_SOUND)), holder="vm:web1", ttl_ms=60_000, host=HOST)
        granted = await stage.client.ask(request)
        assert granted.outcome == "granted"
        # Until then the driver of the sound function does not take it again, either: it is tried until it does.
        await until(lambda: stage.has_ended(granted.lease))
        kernel.refuse.clear()
        await until(lambda: stage.is_free(pci(GPU)))
        await until(lambda: stage.is_free(pci(GPU_SOUND)))
        answer = await stage.client.ask(request)
        assert (answer.state, answer.ended) == ("ended", "failed")
        assert GPU_SOUND in answer.message or "EBUSY" in answer.message
        assert (kernel.driver(GPU), kernel.driver(GPU_SOUND)) == ("nouveau", "snd_hda_intel")


async def test_a_domain_starts_and_stops(short: Path, kernel: Kernel) -> None:
    """At the door it is refused what it has no lease for, waits until what it has is handed over, and lets go of it."""
    async with staged(short, kernel) as stage, stage.binder():
        said = await stage.asks(op="start", devices=[NIC_KEY], **WEB)
        assert (said["ok"], said["code"]) == (False, "lease_unknown"), said
        async with stage.client.lease(NIC_KEY, host=HOST, holder="vm:other"):
            await until(lambda: stage.is_prepared(NIC_KEY))
            said = await stage.asks(op="start", devices=[NIC_KEY], **WEB)
            assert (said["code"], said["holder"]) == ("device_held", "vm:other"), said
        await until(lambda: stage.is_free(NIC_KEY))
        hanging = kernel.hang("reset")
        request = lease_request((NIC_KEY, "usb_1_2"), holder="web1", ttl_ms=60_000, host=HOST, domain=UUID)
        granted = await stage.client.ask(request)
        starting = asyncio.create_task(stage.asks(op="start", devices=[NIC_KEY, "usb-id/0781:5581"], **WEB))
        await until(lambda: "reset 1" in kernel.told)
        assert not starting.done()
        hanging.set()
        said = await starting
        assert said["ok"], said
        assert (said["leases"], set(said["devices"])) == ([f"L{granted.lease}"], {NIC_KEY, STICK_KEY})
        assert kernel.driver(NIC) == "vfio-pci"
        assert (await stage.asks(op="status"))["held"][0]["state"] == "prepared"
        assert (await stage.asks(op="stop", **WEB))["leases"] == [f"L{granted.lease}"]
        await until(lambda: stage.is_free(NIC_KEY))
        await until(lambda: stage.is_free(STICK_KEY))
        assert (await stage.client.ask(request)).ended == "outlived"
        assert kernel.driver(f"{STICK}:1.0") == "usb-storage"


async def test_killed_while_preparing_and_while_giving_back(short: Path, kernel: Kernel) -> None:
    """kill -9 in the middle of either, as a real process: the next one brings it to its end."""
    async with staged(short, kernel) as stage:
        async with stage.binder_process("wrote-2") as binder:
            await until(stage.is_managed)
            request = lease_request((NIC_KEY, "usb_1_2"), holder="vm:web1", ttl_ms=600_000, host=HOST)
            granted = await stage.client.ask(request)
            assert await asyncio.wait_for(binder.wait(), WAIT_S) == -signal.SIGKILL
            assert await stage.binding(NIC_KEY) == "preparing"
        async with stage.binder_process():
            await until(lambda: stage.is_prepared(NIC_KEY))
            await until(lambda: stage.is_prepared(STICK_KEY))
        # In good order it leaves living leases what they have.
        assert kernel.driver(NIC) == "vfio-pci"
        async with stage.binder_process("wrote-2") as binder:
            await stage.client.release(granted.lease, granted.token)
            assert await asyncio.wait_for(binder.wait(), WAIT_S) == -signal.SIGKILL
            assert "giving_back" in {await stage.binding(NIC_KEY), await stage.binding(STICK_KEY)}
        async with stage.binder_process():
            await until(lambda: stage.is_free(NIC_KEY))
            await until(lambda: stage.is_free(STICK_KEY))
        assert (kernel.driver(NIC), kernel.driver(f"{STICK}:1.0")) == ("e1000e", "usb-storage")


async def test_the_bus_is_cut(short: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stale token is refused all the same, at once; the current one is vouched for only so long."""
    monkeypatch.setattr(limits, "CUT_OFF_MS", 4_000)
    async with staged(short, kernel) as stage, stage.binder() as binder:
        async with stage.client.lease(NIC_KEY, host=HOST, holder="vm:old", wait_prepared=True) as old:
            stale = old.token
        await until(lambda: stage.is_free(NIC_KEY))
        request = lease_request((NIC_KEY,), holder="vm:new", ttl_ms=600_000, host=HOST)
        token = (await stage.client.ask(request)).token
        await until(lambda: stage.is_prepared(NIC_KEY))
        server = stage.bus.server_pids[0]
        os.kill(server, signal.SIGSTOP)
        try:
            assert (await stage.asks(op="check", device=NIC_KEY, token=token))["ok"]
            said = await stage.asks(op="check", device=NIC_KEY, token=stale)
            assert (said["ok"], said["code"]) == (False, "token_stale"), said
            await until(stage.is_cut_off)
            said = await stage.asks(op="check", device=NIC_KEY, token=token)
            assert (said["ok"], said["code"]) == (False, "cut_off"), said
            said = await stage.asks(op="check", device=NIC_KEY, token=stale)
            assert (said["ok"], said["code"]) == (False, "token_stale"), said
        finally:
            os.kill(server, signal.SIGCONT)
        await until(lambda: stage.vouches(NIC_KEY, token))
        assert not binder.handing.complaints
