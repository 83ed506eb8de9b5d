"""`leasehold xend`: every function from a shell, with units and in tables; errors are one line and an exit code."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from leasehold.services.cli.xend import xend
from leasehold.services.xend import sxp
from leasehold.services.xend.address import HTTP, XMLRPC
from tests.support.commands import Commands
from tests.xend.replay import Asked, Replay, recordings, replaying


@contextmanager
def served(path: Path, *numbers: int, protocol: str = HTTP) -> Iterator[Replay]:
    """The answers of recordings, from a loop of its own: commands have theirs."""
    started: list[Replay] = []
    ready, done = threading.Event(), threading.Event()

    async def serve() -> None:
        async with replaying(path, *(recordings()[each].answer for each in numbers), protocol=protocol) as replay:
            started.append(replay)
            ready.set()
            await asyncio.to_thread(done.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(20)
        yield started[0]
    finally:
        done.set()
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Commands:
    """The command line, in this process."""
    return Commands(tmp_path, monkeypatch, capsys)


def run(commands: Commands, replay: Replay, *arguments: str) -> tuple[int, str, str]:
    """A command of `leasehold xend` at this server."""
    return commands.run("xend", "--address", str(replay.address), "--timeout", "10s", *arguments)


OK, TRUE = 10, 79
ASKS: dict[str, tuple[int, dict[str, str]]] = {
    "wait-for-devices web1": (OK, {"op": "wait_for_devices"}),
    "pause web1": (OK, {"op": "pause"}),
    "unpause web1": (OK, {"op": "unpause"}),
    "reboot web1": (OK, {"op": "shutdown", "reason": "reboot"}),
    "shutdown web1": (OK, {"op": "shutdown", "reason": "poweroff"}),
    "shutdown web1 --reason suspend": (OK, {"op": "shutdown", "reason": "suspend"}),
    "destroy web1": (OK, {"op": "destroy"}),
    "reset web1": (OK, {"op": "reset"}),
    "start web1": (OK, {"op": "start"}),
    "delete web1": (OK, {"op": "delete"}),
    "rename web1 web2": (OK, {"op": "rename", "name": "web2"}),
    "sysrq web1 h": (OK, {"op": "sysrq", "key": "104"}),
    "restore /srv/web1.save": (OK, {"op": "restore", "file": "/srv/web1.save"}),
    "dump web1 /srv/core --live": (OK, {"op": "dump", "file": "/srv/core", "live": "1", "crash": "0", "reset": "0"}),
    "memory web1 640M": (OK, {"op": "mem_target_set", "target": "640"}),
    "memory web1 1073741824": (OK, {"op": "mem_target_set", "target": "1024"}),
    "max-memory web1 2GiB": (OK, {"op": "maxmem_set", "memory": "2048"}),
    "vcpus web1 3": (OK, {"op": "set_vcpus", "vcpus": "3"}),
    "attach-disk web1 phy:/dev/vg0/data xvdb --mode ro": (
        61, {"op": "device_create", "config": "(vbd (uname phy:/dev/vg0/data) (dev xvdb) (mode r) (backend 0))"}),
    "attach web1 disk uname=phy:/dev/x dev=xvdb mode=rw": (
        61, {"op": "device_create", "config": "(vbd (uname phy:/dev/x) (dev xvdb) (mode w))"}),
    "detach-disk web1 xvdb --force": (
        OK, {"op": "device_destroy", "type": "vbd", "dev": "xvdb", "force": "1", "rm_cfg": "1"}),
    "detach web1 vusb 0": (OK, {"op": "device_destroy", "type": "vusb", "dev": "0", "force": "0", "rm_cfg": "0"}),
    "attach-nic web1 --mac 00:16:3e:77:88:99 --bridge xenbr0": (
        71, {"op": "device_create", "config": "(vif (mac 00:16:3e:77:88:99) (bridge xenbr0) (backend 0))"}),
    "detach-nic web1 1": (OK, {"op": "device_destroy", "type": "vif", "dev": "1", "force": "0", "rm_cfg": "1"}),
    "attach-pci web1 0000:03:00.1 --vdevfn 0x30 --option permissive=1": (
        TRUE, {"op": "device_configure", "dev": "0", "config": "(pci (dev (domain 0x0000) (bus 0x03) (slot 0x00) "
               "(func 0x1) (vdevfn 0x30) (opts (permissive 1))) (state Initialising))"}),
    "detach-pci web1 0000:03:00.1": (
        TRUE, {"op": "device_configure", "dev": "0", "config": "(pci (dev (domain 0x0000) (bus 0x03) (slot 0x00) "
               "(func 0x1) (vdevfn 0x100)) (state Closing))"}),
    "attach-usb web1 1-1.4 --port 2 --controller 1": (
        TRUE, {"op": "device_configure", "dev": "1", "config": "(vusb (port (2 1-1.4)))"}),
    "detach-usb web1 --port 2": (TRUE, {"op": "device_configure", "dev": "0", "config": "(vusb (port (2 '')))"}),
    "attach-usb-controller web1 --version 1 --ports 2": (
        97, {"op": "device_create", "config": "(vusb (usb-ver 1) (num-ports 2) (port (1 '') (2 '')))"}),
    "node-shutdown --yes": (107, {"op": "shutdown"}),
    "node-restart --yes": (107, {"op": "reboot"}),
    "dmesg --clear": (104, {"op": "clear"}),
}  # fmt: skip
"""Commands: the recording that answers, and what xend is asked."""
SHOWN_ELSEWHERE = {
    *("list", "show", "create", "define", "save", "devices", "pci-assignable", "usb-add", "usb-del", "node", "log"),
}


@pytest.mark.parametrize("command", ASKS)
def test_a_command_asks_what_it_says(command: str, commands: Commands, tmp_path: Path) -> None:
    """One request, with these fields."""
    number, expected = ASKS[command]
    with served(tmp_path, number) as replay:
        code, _, err = run(commands, replay, *command.split())
    assert (code, err) == (0, "")
    (asked,) = replay.asked
    assert dict(asked.fields) == expected


def test_no_command_is_left_out() -> None:
    """Each is in the table, or in a test below."""
    tried = {command.split()[0] for command in ASKS}
    assert set(xend.commands) == tried | SHOWN_ELSEWHERE


def last(replay: Replay) -> Asked:
    """What was asked last."""
    return replay.asked[-1]


def test_domains_as_a_table_and_as_json(commands: Commands, tmp_path: Path) -> None:
    """Sorted by domid, those that do not run last; with units, and the host's devices that they have."""
    with served(tmp_path, 142, 7) as replay:
        code, out, _ = run(commands, replay, "list")
    assert code == 0
    rows = [line.split() for line in out.splitlines()]
    assert [row[0] for row in rows] == ["name", "Domain-0", "web1", "gpu-hvm"]
    assert rows[2][:7] == ["web1", "1", "running", "640", "MiB", "2", "GiB"]
    assert "0000:03:00.0 0000:06:00.0" in out and "2-1.4" in out and "host:0529:0001" in out
    with served(tmp_path, 142) as replay:
        _, out, _ = run(commands, replay, "list", "--state", "running", "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert [each["name"] for each in found] == ["Domain-0", "web1", "gpu-hvm"]
    assert found[1]["memory_bytes"] == 640 * 1024 * 1024
    with served(tmp_path, 7) as replay:
        assert run(commands, replay, "list", "--names")[1] == "Domain-0\nweb1\n"


def test_one_domain(commands: Commands, tmp_path: Path) -> None:
    """All that is told of it, for people and for programs."""
    with served(tmp_path, 17) as replay:
        _, out, _ = run(commands, replay, "show", "gpu-hvm")
        _, as_json, _ = run(commands, replay, "show", "gpu-hvm", "--json")
    assert "1 GiB" in out and "address=0000:06:00.0 vdevfn=40 options=msitranslate=1" in out
    assert json.loads(as_json)["pci"][0] == {
        "address": "0000:03:00.0", "vdevfn": 0x20, "uuid": "aaaaaaaa-0000-4000-8000-000000000001"
    }  # fmt: skip


def test_a_domain_is_made_from_sxp_and_from_json(commands: Commands, tmp_path: Path) -> None:
    """A file, or standard input; with `--start` it runs in the end. What is neither is told of."""
    text = "(vm (name web1) (memory 512) (vcpus 2) (image (linux (kernel /boot/vmlinuz))))"
    (tmp_path / "web1.sxp").write_text(f"# mine\n{text}\n", encoding="utf-8")
    with served(tmp_path, 5, 9, 10, 11) as replay:
        code, out, _ = run(commands, replay, "create", str(tmp_path / "web1.sxp"), "--start")
    assert (code, out) == (0, "web1 is domain 1, running\n")
    assert dict(replay.asked[0].fields)["config"] == text
    assert [dict(each.fields).get("op", "") for each in replay.asked] == ["create", "wait_for_devices", "unpause", ""]
    described = {"name": "web1", "memory_bytes": 1 << 29, "image": {"kernel": "/boot/vmlinuz"}}
    (tmp_path / "web1.json").write_text(json.dumps(described), encoding="utf-8")
    with served(tmp_path, OK) as replay:
        assert run(commands, replay, "define", str(tmp_path / "web1.json"))[0] == 0
    assert sxp.read(dict(last(replay).fields)["config"].encode()) == sxp.read(
        b"(vm (name web1) (memory 512) (maxmem 512) (vcpus 1) (image (linux (kernel /boot/vmlinuz))))"
    )
    for name, content, expected in (
        ("short.sxp", "(vm (name", "unexpected EOF"),
        ("bad.json", '{"name": 5}', "file: Expected `str`, got `int`"),
        ("odd.json", '{"name": "x", "memory_bytes": 5, "image": {"kernel": "/k"}}', "memory_bytes: 5 is"),
    ):
        (tmp_path / name).write_text(content, encoding="utf-8")
        with served(tmp_path, OK) as replay:
            code, _, err = run(commands, replay, "define", str(tmp_path / name))
        assert code != 0 and replay.connections == 0
        assert expected in err or "no whole number of MiB" in err


def test_devices_hosts_and_logs(commands: Commands, tmp_path: Path) -> None:
    """Attributes with their backend's name; the host with its memory; messages line by line."""
    with served(tmp_path, 67, 143) as replay:
        _, out, _ = run(commands, replay, "devices", "web1", "disk")
    assert "51728" in out and "connected" in out and "bkdom-name=Domain-0" in out
    with served(tmp_path, 2) as replay:
        _, out, _ = run(commands, replay, "node")
        _, as_json, _ = run(commands, replay, "node", "--json")
    assert "16 GiB" in out and json.loads(as_json)["total_memory_bytes"] == 16 << 30
    with served(tmp_path, 103) as replay:
        assert run(commands, replay, "dmesg")[1].startswith("(XEN) Xen version 4.4.4")
        assert run(commands, replay, "log")[1].startswith("(XEN) Xen version 4.4.4")
    with served(tmp_path, 202, protocol=XMLRPC) as replay:
        assert run(commands, replay, "pci-assignable")[1] == "0000:03:00.1\n0000:07:00.0\n"
    with served(tmp_path, 49) as replay:
        assert run(commands, replay, "vcpus", "web1")[1].splitlines()[1].split()[:2] == ["0", "1"]
    with served(tmp_path, 11, 10) as replay:
        assert run(commands, replay, "save", "web1", "/srv/web1.save")[0] == 0
    assert dict(last(replay).fields) == {"op": "save", "file": "/srv/web1.save"}


FAILURES: dict[str, tuple[int, int, str]] = {
    "pause Domain-0": (28, 1, "leasehold: pause: Cannot pause privileged domain 0"),
    "show nope": (136, 1, "leasehold: get_domain: there is no domain 'nope'; it may have gone"),
    "usb-add web1 host:1.3": (OK, 1, "leasehold: usb_add: xend offers this over XML-RPC only"),
    "usb-del web1 host:1.3": (OK, 1, "leasehold: usb_del: xend offers this over XML-RPC only"),
    "memory web1 1000": (OK, 2, "memory_bytes: 1000 bytes are no whole number of MiB, as 1048576 would be"),
    "memory web1 many": (OK, 2, "'many' is not a size; one looks like 512M, 2G or 536870912 (bytes)"),
    "rename web1 a/b": (OK, 2, "name: 'a/b': letters, digits and _ - . : + are taken"),
    "attach web1 disk xvdb": (OK, 2, "attributes: 'xvdb' is not of the form NAME=VALUE"),
    "attach-pci web1 0000:03:00.1 --vdevfn zz": (OK, 2, "vdevfn: 'zz' is no hexadecimal number"),
    "attach web1 pci permissive=1": (OK, 2, "address: which function"),
}


@pytest.mark.parametrize("command", FAILURES)
def test_a_failure_is_one_line(command: str, commands: Commands, tmp_path: Path) -> None:
    """With an exit code that tells bad input from what xend refuses."""
    number, expected_code, expected = FAILURES[command]
    with served(tmp_path, number) as replay:
        code, out, err = run(commands, replay, *command.split())
    assert (code, out) == (expected_code, "")
    assert expected in err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(vm (name web1)", "file: byte 0: unexpected EOF"),
        ("(vm (name web1)) (device (vif))", "file: one list such as (vm …) is wanted, and 2 values are here"),
        ("vm", "file: one list such as"),
        ("", "file: one list such as (vm …) is wanted, and 0 values are here"),
    ],
)
def test_a_file_is_one_list(text: str, expected: str, commands: Commands, tmp_path: Path) -> None:
    """What stands behind a list that was closed too early is not dropped; nothing is sent, and it is bad input."""
    file = tmp_path / "web1.sxp"
    file.write_text(text, encoding="utf-8")
    with served(tmp_path, 5) as replay:
        code, out, err = run(commands, replay, "create", str(file))
        assert (code, out, replay.asked) == (2, "", [])
    assert expected in err


def test_no_xend_is_unavailable(commands: Commands, tmp_path: Path) -> None:
    """Exit code 4, and the address that was tried; an address that is none is bad input."""
    code, _, err = commands.run("xend", "--address", f"unix:{tmp_path}/none.sock", "list")
    assert code == 4 and "none.sock cannot be reached: No such file or directory" in err
    code, _, err = commands.run("xend", "--address", "xen1:8000", "list")
    assert code == 2 and "unix:/PATH (HTTP), http://HOST:PORT" in err


def test_sizes(commands: Commands, tmp_path: Path) -> None:
    """Units of memory, in either case, with or without a B."""
    sizes: dict[str, Any] = {"524288K": 512, "512m": 512, "1gb": 1024, "1T": 1024 * 1024, "1048576": 1}
    with served(tmp_path, OK) as replay:
        for text in sizes:
            assert run(commands, replay, "memory", "web1", text)[0] == 0
    assert [int(dict(each.fields)["target"]) for each in replay.asked] == list(sizes.values())
