"""Virtual functions from who orders them to the played kernel and back, through real servers and processes."""

from functools import partial
from pathlib import Path

import pytest

from leasehold.events.capabilities import NewVirtualFunctions
from leasehold.events.errors import RefusedError
from leasehold.services.client import Client
from tests.bench.cluster import HOST
from tests.creator.kernel import FUNCTIONS_MAX, Kernel, function_at
from tests.creator.stage import Stage, staged, until

CARD = "pci/0000:00:07.0"
FUNCTIONS = [f"pci/{function_at(number)}" for number in range(3)]


def wanted(count: int) -> NewVirtualFunctions:
    return NewVirtualFunctions(parent="pci_0000_00_07_0", count=count)


async def are_there(stage: Stage, count: int) -> bool:
    """Whether the log has the first `count` of them, and no others."""
    return [await stage.knows(key) for key in FUNCTIONS] == [number < count for number in range(3)]


async def refusal(client: Client, count: int) -> str:
    with pytest.raises(RefusedError) as raised:
        await client.create_device(wanted(count), host=HOST)
    return str(raised.value.refusal_code)


async def test_they_are_made_leased_and_taken_away(tmp_path: Path, kernel: Kernel) -> None:
    """Made and known to the log; while one is leased, its card is not, and no number is set; then they go."""
    async with staged(tmp_path, kernel) as stage, stage.creator():
        client = stage.client
        answer = await stage.settled(await stage.ordered(wanted(2)))
        assert (answer.state, answer.devices) == ("done", (f"{HOST}/{CARD}",)), answer
        await until(lambda: are_there(stage, 2))
        async with client.lease(FUNCTIONS[1], host=HOST, holder="vm:web1"):
            with pytest.raises(RefusedError) as raised:
                async with client.lease(CARD, host=HOST, holder="vm:web2"):
                    pass
            assert raised.value.refusal_code == "device_held"
            assert [await refusal(client, count) for count in (0, 3)] == ["device_held"] * 2

        async def is_free() -> bool:
            return (await client.device(FUNCTIONS[1], host=HOST)).state == "free"

        # Nobody says so but the watcher, which looks again.
        await until(is_free)
        for count in (3, 0):
            answer = await client.create_device(wanted(count), host=HOST)
            assert answer.state == "done", answer
            await until(partial(are_there, stage, count))
    assert kernel.told == [f"sriov_numvfs {number}" for number in (2, 0, 3, 0)]


async def test_none_is_granted_while_they_may_go(tmp_path: Path, kernel: Kernel) -> None:
    """Between the order and its end nobody gets one of them, nor the card: it might be taken from under its holder."""
    async with staged(tmp_path, kernel) as stage, stage.creator():
        client = stage.client
        await stage.settled(await stage.ordered(wanted(2)))
        await until(lambda: are_there(stage, 2))
        kernel.answers.clear()
        request = await stage.ordered(wanted(0))
        await until(lambda: kernel.told[-1] == "sriov_numvfs 0")
        for key in (FUNCTIONS[0], CARD):
            with pytest.raises(RefusedError) as raised:
                async with client.lease(key, host=HOST, holder="vm:web1"):
                    pass
            assert raised.value.refusal_code == "device_in_use", key
        assert await refusal(client, 1) == "device_in_use"
        kernel.answers.set()
        assert (await stage.settled(request)).state == "done"


async def test_who_cannot_have_so_many(tmp_path: Path, kernel: Kernel) -> None:
    """A card without SR-IOV, or one that can have fewer, is refused before its host is told anything."""
    async with staged(tmp_path, kernel) as stage, stage.creator():
        await stage.settled(await stage.ordered(wanted(0)))
        with pytest.raises(RefusedError) as raised:
            await stage.client.create_device(NewVirtualFunctions(parent="pci_0000_00_06_0", count=1), host=HOST)
        assert raised.value.refusal_code == "parent_unsuitable"
        assert await refusal(stage.client, FUNCTIONS_MAX + 1) == "parent_unsuitable"
    assert kernel.told == []
