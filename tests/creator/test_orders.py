"""Orders from who gives them to the played kernel and back, through real servers and processes."""

import asyncio
import errno
import json
import signal
from pathlib import Path

import pytest

from leasehold.events.capabilities import NewMdev, NewVport
from leasehold.events.errors import RefusedError
from leasehold.services.asking import create_device_request
from tests.bench.cluster import HOST
from tests.creator.kernel import MDEV_GROUP, TYPE, WWNN, WWPN, Kernel
from tests.creator.stage import WAIT_S, staged, until

NODE, PORT = "5525400aaaaaaaa1", "5525400aaaaaaaa2"
VPORT = NewVport(parent="scsi_host5", wwnn=NODE, wwpn=PORT)
KEY = f"pci/0000:00:05.0/scsi_host/{PORT}"
UUID = "c2177883-f1bb-47f0-914d-32a22e3a8804"
MDEV = NewMdev(parent="pci_0000_00_06_0", mdev_type=TYPE, uuid=UUID)
MDEV_KEY = f"pci/0000:00:06.0/mdev/{UUID}"
MADE, DESTROYED = f"vport_create {PORT}:{NODE}", f"vport_delete {PORT}:{NODE}"


async def test_a_virtual_hba(tmp_path: Path, kernel: Kernel) -> None:
    """Made, known to the log, and taken away, each an order that is carried out once and can be asked after again."""
    async with staged(tmp_path, kernel) as stage, stage.creator():
        client = stage.client
        request = await stage.ordered(VPORT)
        answer = await stage.settled(request)
        assert (answer.outcome, answer.state, answer.devices) == ("ordered", "done", (f"{HOST}/{KEY}",))
        await until(lambda: stage.knows(KEY))
        again = await client.order(request)
        assert (again.order, again.state, again.devices) == (answer.order, "done", answer.devices)
        with pytest.raises(RefusedError) as raised:
            await client.create_device(VPORT, host=HOST)
        assert raised.value.refusal_code == "device_exists"
        gone = await client.destroy_device("scsi_host6", host=HOST)
        assert (gone.state, gone.devices) == ("done", (f"{HOST}/{KEY}",))
        rows = await client.orders(host=HOST, ended=True)
        assert [(row.order, row.state, row.device) for row in rows] == [
            (answer.order, "done", KEY),
            (gone.order, "done", KEY),
        ]
        assert await client.orders(host=HOST) == []
    assert kernel.told == [MADE, DESTROYED]


async def test_names_that_are_made_up(tmp_path: Path, kernel: Kernel) -> None:
    """Without names, virtual HBAs and mediated devices get ones that nobody has; a parent is found by its fabric."""
    async with staged(tmp_path, kernel) as stage, stage.creator():
        fabric = NewVport(parent_fabric_wwn="100000051ea1b2c3")
        found = [await stage.settled(await stage.ordered(each)) for each in (fabric, NewVport())]
        found.append(await stage.settled(await stage.ordered(NewMdev(parent="pci_0000_00_06_0", mdev_type=TYPE))))
        assert [answer.state for answer in found] == ["done"] * 3, found
        assert len({answer.devices for answer in found}) == 3
    names = [name for told in kernel.told[:2] for name in told.split()[1].split(":")]
    assert len({*names, WWNN, WWPN}) == 6
    assert all(name.startswith("5525400") for name in names)


async def test_a_mediated_device(tmp_path: Path, kernel: Kernel) -> None:
    """Made and leased; while it is leased, or a process has it open, it is not taken away; then it is."""
    async with staged(tmp_path, kernel) as stage, stage.creator():
        client = stage.client
        assert (await stage.settled(await stage.ordered(MDEV))).devices == (f"{HOST}/{MDEV_KEY}",)
        await until(lambda: stage.knows(MDEV_KEY))
        async with client.lease(MDEV_KEY, host=HOST, holder="vm:web1"):
            with pytest.raises(RefusedError) as raised:
                await client.destroy_device(MDEV_KEY, host=HOST)
            assert raised.value.refusal_code == "device_held"
        process = kernel.root.proc / "4711"
        (process / "fd").mkdir(parents=True)
        (process / "comm").write_text("qemu-system-x86\n")
        (process / "fd/9").symlink_to(f"/dev/vfio/{MDEV_GROUP}")
        # Whether the log knows it yet or not: it is looked at again before the kernel is told.
        try:
            answer = await client.destroy_device(MDEV_KEY, host=HOST)
            assert answer.state == "failed" and "qemu-system-x86 (pid 4711)" in answer.message
        except RefusedError as error:
            assert error.refusal_code == "device_in_use"
        (process / "fd/9").unlink()

        async def is_destroyed() -> bool:
            try:
                return (await client.destroy_device(MDEV_KEY, host=HOST)).state == "done"
            except RefusedError:
                return False

        await until(is_destroyed)
    assert kernel.told == [f"create {UUID}", "remove 1"]


async def test_only_where_it_is_allowed(tmp_path: Path, kernel: Kernel) -> None:
    """Without a creator nothing can be made there; its end makes no host stale, so devices are leased as before."""
    async with staged(tmp_path, kernel) as stage:

        async def refusal() -> str:
            request = create_device_request(NewVport(parent="scsi_host5"), host=HOST)
            answer = await stage.client.answer_to(request)
            return answer.refusal.code if answer.refusal else ""

        assert await refusal() == "host_forbids"
        async with stage.creator():
            assert (await stage.settled(await stage.ordered(VPORT))).state == "done"
        assert await refusal() == "host_forbids"
        assert [row.stale for row in await stage.client.hosts()] == [""]
        async with stage.client.lease("pci_0000_00_06_0", host=HOST, holder="vm:web1"):
            pass


async def test_failures_are_told(tmp_path: Path, kernel: Kernel) -> None:
    """What the kernel refuses has failed, in its words, in the log, too; an order of the same names may follow."""
    kernel.refuse["vport_create"] = errno.ENOSPC
    async with staged(tmp_path, kernel) as stage, stage.creator():
        failed = await stage.settled(await stage.ordered(VPORT))
        assert failed.state == "failed"
        assert "No space left on device (ENOSPC)" in failed.message
        kernel.refuse.clear()
        assert (await stage.settled(await stage.ordered(VPORT))).state == "done"
        told = [row.text async for row in stage.client.history("scsi_host5", host=HOST)]
        assert any("ENOSPC" in text for text in told), told


@pytest.mark.parametrize("dies", ["before", "after", "done"])
async def test_a_killed_creator(tmp_path: Path, kernel: Kernel, dies: str) -> None:
    """Killed before, after, or between doing and telling: the next run sees to it that the order is done, once."""
    with kernel.playing():
        async with staged(tmp_path, kernel) as stage:
            async with stage.creator_process(dies) as process:
                request = await stage.ordered(VPORT)
                assert await asyncio.wait_for(process.wait(), WAIT_S) == -signal.SIGKILL
            assert (await stage.client.answer_to(request)).state == "waiting"
            async with stage.creator_process():
                answer = await stage.settled(request)
                assert (answer.state, answer.devices) == ("done", (f"{HOST}/{KEY}",))
                assert not (await stage.order(answer)).reason
        assert kernel.told == [MADE]


@pytest.mark.parametrize("comes", [True, False])
async def test_a_killed_creator_behind_its_time(tmp_path: Path, kernel: Kernel, comes: bool) -> None:
    """The order's time is over before the next run: what was made is told late, what is half made is taken back."""
    if not comes:
        kernel.hosts_come.clear()
    with kernel.playing():
        async with staged(tmp_path, kernel) as stage:
            async with stage.creator_process("after") as process:
                request = await stage.ordered(VPORT, timeout_ms=1_000)
                await asyncio.wait_for(process.wait(), WAIT_S)
            answer = await stage.settled(request)
            assert answer.state == "timed_out"
            async with stage.creator_process():
                if comes:
                    await until(lambda: stage.is_state(request, "done"))
                else:
                    await until(lambda: kernel.told == [MADE, DESTROYED])
                    assert await stage.is_state(request, "timed_out")


async def test_what_nobody_began(tmp_path: Path, kernel: Kernel) -> None:
    """An order that timed out unbegun is not told as done late, though somebody makes that very device by hand."""
    async with staged(tmp_path, kernel) as stage:
        async with stage.creator():
            await stage.settled(await stage.ordered(MDEV))
            stage.processes["feed"].send_signal(signal.SIGSTOP)
            request = await stage.ordered(VPORT, timeout_ms=1_000)
        assert (await stage.settled(request)).state == "timed_out"
        stage.processes["feed"].send_signal(signal.SIGCONT)
        kernel._make_vport(NODE, PORT)
        async with stage.creator():
            gone = await stage.client.destroy_device(MDEV_KEY, host=HOST)
            assert gone.state == "done"
        assert await stage.is_state(request, "timed_out")
        assert kernel.told == [f"create {UUID}", "remove 1"]


async def test_a_kernel_that_does_not_answer(tmp_path: Path, kernel: Kernel) -> None:
    """A stuck write holds up the orders of its parent and no others, nor the agent's end; what it does late is told."""
    kernel.answers.clear()
    async with staged(tmp_path, kernel) as stage:
        async with stage.creator():
            stuck = await stage.ordered(VPORT, timeout_ms=1_000)
            second = await stage.ordered(NewVport(parent="scsi_host5", wwnn="5" * 16, wwpn="6" * 16))
            assert (await stage.settled(stuck)).state == "timed_out"
            assert await stage.is_state(second, "waiting")
            assert kernel.told == [MADE]
            other = await stage.ordered(MDEV)
            await until(lambda: kernel.told == [MADE, f"create {UUID}"])
            kernel.answers.set()
            assert (await stage.settled(second)).state == "done"
            assert (await stage.settled(other)).state == "done"
            await until(lambda: stage.is_state(stuck, "done"))
            kernel.answers.clear()
            await stage.ordered(NewVport(parent="scsi_host5"))
            await until(lambda: len(kernel.told) == 4)
        kernel.answers.set()


async def test_without_a_feed(tmp_path: Path, kernel: Kernel) -> None:
    """An order that nobody tells of is learnt of from the answer to a heartbeat, and done."""
    async with staged(tmp_path, kernel, roles=("allocator", "query")) as stage, stage.creator():
        assert (await stage.settled(await stage.ordered(VPORT))).state == "done"


async def test_two_creators(tmp_path: Path, kernel: Kernel) -> None:
    """Two that were started for one host by mistake take turns; each order has one effect, and ends once."""
    async with staged(tmp_path, kernel) as stage, stage.creator(), stage.creator("another"):
        orders = [NewVport(parent="scsi_host5", wwnn=NODE, wwpn=f"525400000000000{number}") for number in range(3)]
        requests = [await stage.ordered(order) for order in orders]
        assert [(await stage.settled(request)).state for request in requests] == ["done"] * 3
    assert len(list((kernel.root.sys / "class/fc_vports").iterdir())) == 3
    assert not [told for told in kernel.told if told.startswith("vport_delete")]


async def test_nobody_to_tell(tmp_path: Path, kernel: Kernel) -> None:
    """What was done while no allocator was there is told when there is one again."""
    kernel.answers.clear()
    async with staged(tmp_path, kernel) as stage, stage.creator() as creator:
        request = await stage.ordered(VPORT)
        await until(lambda: kernel.told == [MADE])
        stage.processes["allocator"].terminate()
        await stage.processes["allocator"].wait()
        kernel.answers.set()
        await until(lambda: bool(creator._results))
        async with stage.process("allocator"):
            assert (await stage.settled(request)).state == "done"


async def test_commands(tmp_path: Path, kernel: Kernel) -> None:
    """`leasehold nodedev` makes, lists and destroys, from options and from libvirt's XML, and says how it went."""
    xml = tmp_path / "vport.xml"
    xml.write_text(
        f"<device><parent wwnn='{WWNN}' wwpn='{WWPN}'/><capability type='scsi_host'><capability type='fc_host'>"
        f"<wwnn>{NODE}</wwnn><wwpn>{PORT}</wwpn></capability></capability></device>"
    )
    async with staged(tmp_path, kernel) as stage:
        code, _, err = await stage.leasehold("nodedev", "create", str(xml), "--host", HOST)
        assert (code, "refused (host_forbids)" in err) == (3, True), err
        async with stage.creator():
            code, out, err = await stage.leasehold("nodedev", "create", str(xml), "--host", HOST)
            assert (code, out) == (0, f"scsi_host6 was made ({HOST}/{KEY})\n"), err
            code, out, err = await stage.leasehold(
                "nodedev", "create-mdev", "pci_0000_00_06_0", TYPE, "--uuid", UUID.upper(), "--json"
            )
            made = json.loads(out)
            assert (code, made["state"], made["devices"]) == (0, "done", [f"{HOST}/{MDEV_KEY}"]), err
            assert made["name"].startswith("mdev_c2177883")
            code, out, err = await stage.leasehold("nodedev", "destroy", "scsi_host6")
            assert (code, out) == (0, f"destroyed: {HOST}/{KEY}\n"), err
            kernel.refuse["vport_create"] = errno.EIO
            code, _, err = await stage.leasehold("nodedev", "create-vport", "--parent", "scsi_host5")
            assert (code, "failed" in err, "EIO" in err) == (1, True, True), err
            code, out, err = await stage.leasehold("nodedev", "create-vport", "--host", HOST, "--no-wait")
            assert (code, "the host is told" in out) == (0, True), err
            code, out, _ = await stage.leasehold("nodedev", "orders", "--all", "--host", HOST)
            assert code == 0
            assert [line.split()[1] for line in out.splitlines()[1:5]] == ["done", "done", "done", "failed"], out
            code, out, _ = await stage.leasehold("nodedev", "orders", "--all", "--csv")
            assert len(out.splitlines()) == 6, out
        code, _, err = await stage.leasehold("nodedev", "create-vport", "--host", HOST, "--wwpn", "zz")
        assert (code, "world wide name" in err) == (2, True), err
