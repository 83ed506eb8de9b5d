"""The wrapper of `xl`, before a stand-in of Xen's own that prints what Xen 4.17's prints."""

import json
import sys
from typing import Any, Final

import pytest

from tests.hooks import doors
from tests.hooks.doors import REFUSED, a_door
from tests.hooks.stage import UUID, Stage
from tests.support.tree import ROOT

DATA: Final = ROOT / "tests/data/xl"
HVM_UUID: Final = "11111111-2222-4333-8444-555555555555"
HVM_DEVICES: Final = ["pci/0000:03:00.0", "pci/0000:06:00.0", "usb-address/1.3"]
LISTED: Final = [{"domid": 7, "config": {"c_info": {"type": "pv", "name": "web", "uuid": UUID}, "b_info": {}}}]

_XL: Final = """\
#!{python}
import json, sys, uuid
folder = {folder!r}
with open(folder + "/called", "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
is_dry = "create" in sys.argv and "-n" in sys.argv
kind = "dry" if is_dry else "list" if sys.argv[1:3] == ["list", "-l"] else "other"
said = json.load(open(folder + "/said"))[kind]
if is_dry and "c_info" in said["out"]:
    print("Parsing config from web.cfg", file=sys.stderr)
    said["out"]["c_info"].setdefault("uuid", str(uuid.uuid4()))
print(said["err"], file=sys.stderr, end="")
print(said["out"] if isinstance(said["out"], str) else json.dumps(said["out"], indent=4))
sys.exit(said["code"])
"""


class Xen:
    """A host with the wrapper and what stands for Xen's own `xl`."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        stage.xl.parent.mkdir()
        stage.xl.write_text(_XL.format(python=sys.executable, folder=str(stage.xl.parent)))
        stage.xl.chmod(0o755)
        self._said = {kind: {"out": "", "err": "", "code": 0} for kind in ("dry", "list", "other")}
        self.says("list", LISTED)
        self.says("dry", json.loads((DATA / "xl-4.17-hvm-config.json").read_text()))

    def says(self, kind: str, out: Any = "", *, err: str = "", code: int = 0) -> None:
        """From now on, to this kind of question."""
        self._said[kind] = {"out": out, "err": err, "code": code}
        (self.stage.xl.parent / "said").write_text(json.dumps(self._said))

    @property
    def called(self) -> list[list[str]]:
        """With what it was called, but for questions."""
        path = self.stage.xl.parent / "called"
        lines = path.read_text().splitlines() if path.exists() else []
        calls: list[list[str]] = [json.loads(line) for line in lines]
        return [each for each in calls if "-n" not in each and each[:2] != ["list", "-l"]]


@pytest.fixture
def xen(stage: Stage) -> Xen:
    """Whose domain 7 is `web`, and whose configurations are of an HVM domain with three devices."""
    return Xen(stage)


def test_a_domain_with_leases_is_created(xen: Xen) -> None:
    """Its devices are those that `xl` itself finds in its configuration; it is created as was said, with the uuid that
    was asked for.
    """
    with a_door(xen.stage.door) as door:
        ended = xen.stage.run("xl", "-v", "create", "web.cfg", "memory=512")
    assert ended.code == 0, ended.err
    asked = {"op": "start", "hypervisor": "xen", "uuid": HVM_UUID, "name": "gpu-hvm", "devices": HVM_DEVICES}
    assert door.asked == [asked]
    assert xen.called == [["-v", "create", "web.cfg", "memory=512", f'uuid="{HVM_UUID}"']]


def test_a_domain_without_one_is_not(xen: Xen) -> None:
    """The real `xl` never hears of it; who has the device is said."""
    with a_door(xen.stage.door) as door:
        door.answer = dict(REFUSED)
        ended = xen.stage.run("xl", "create", "web.cfg")
    assert (ended.code, xen.called) == (1, [])
    assert "is leased to mary (lease 773)" in ended.err
    assert "uuid" not in ended.err


def test_a_configuration_without_a_uuid(xen: Xen) -> None:
    """`xl` makes up another each time it reads it: no lease can be for it, which is said."""
    config = json.loads((DATA / "xl-4.17-hvm-config.json").read_text())
    del config["c_info"]["uuid"]
    xen.says("dry", config)
    with a_door(xen.stage.door) as door:
        door.answer = dict(REFUSED)
        ended = xen.stage.run("xl", "create", "web.cfg")
    assert (ended.code, xen.called) == (1, [])
    assert "(its configuration has no uuid, so that no lease can be for it)" in ended.err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"pcidevs": [{"domain": 1, "bus": 0xA, "dev": 0x1F, "func": 7, "vfunc_mask": 1}]}, ["pci/0001:0a:1f.7"]),
        ({"b_info": {"type.hvm": {"usbdevice": "host:1.3"}}}, ["usb-address/1.3"]),
        (
            {"b_info": {"type.hvm": {"usbdevice_list": ["tablet", "host:0529:000A"]}}},
            ["usb-id/0529:000a"],
        ),
        ({"usbdevs": [{"type.hostdev": {"hostbus": 2, "hostaddr": 9}}]}, ["usb-address/2.9"]),
    ],
)
def test_devices_of_a_configuration(xen: Xen, more: dict[str, Any], words: list[str]) -> None:
    """In whichever part it names them."""
    xen.says("dry", {"c_info": {"name": "web", "uuid": UUID}, "b_info": {}, **more})
    with a_door(xen.stage.door) as door:
        assert xen.stage.run("xl", "create", "web.cfg").code == 0
    assert [each["devices"] for each in door.asked] == [words]


def test_a_domain_without_host_devices_needs_no_binder(xen: Xen) -> None:
    """It is created as was said."""
    xen.says("dry", {"c_info": {"name": "web", "uuid": UUID}, "b_info": {}})
    assert xen.stage.run("xl", "create", "web.cfg").code == 0
    assert xen.called == [["create", "web.cfg"]]


@pytest.mark.parametrize(
    "how", ["a name that only libxl knows", "standard input", "a pipe", "rubbish", "fails", "no xl"]
)
@pytest.mark.parametrize("setting", ["closed", "open"])
def test_a_configuration_that_cannot_be_known(xen: Xen, how: str, setting: str) -> None:
    """Refused, or left to the real `xl`, as it is set."""
    xen.stage.set(on_failure=setting)
    name = "web.cfg"
    match how:
        case "a name that only libxl knows":
            xen.says("dry", {"c_info": {"name": "web", "uuid": UUID}, "pcidevs": [{"name": "nic", "vfunc_mask": 1}]})
        case "standard input":
            name = "-"
        case "a pipe":
            name = "/dev/stdin"
        case "rubbish":
            xen.says("dry", "not JSON")
        case "fails":
            xen.says("dry", err="web.cfg:1: config parsing error", code=1)
        case "no xl":
            xen.stage.xl.unlink()
    with a_door(xen.stage.door) as door:
        ended = xen.stage.run("xl", "create", name)
    assert door.asked == []
    if setting == "closed":
        assert (ended.code, xen.called) == (1, [])
        assert "refused, as on_failure is closed" in ended.err
    elif how != "no xl":
        assert (ended.code, xen.called) == (0, [["create", name]]), ended.err
    else:
        assert ended.code == 1
        assert f"{xen.stage.xl} (setting xl): No such file" in ended.err


@pytest.mark.parametrize("setting", ["closed", "open"])
@pytest.mark.parametrize("command", ["create web.cfg", "pci-attach web 03:00.0"])
def test_a_door_that_hangs(xen: Xen, command: str, setting: str) -> None:
    """Refused or done as it is set, within its time."""
    xen.stage.set(on_failure=setting, timeout_s="2")
    with a_door(xen.stage.door, doors.hangs):
        ended = xen.stage.run("xl", *command.split())
    print(f"{ended.took_s:.2f} s")
    assert "there was no answer within 2 s" in ended.err
    assert ended.took_s < 20
    assert [each[: len(command.split())] for each in xen.called] == ([] if setting == "closed" else [command.split()])


@pytest.mark.parametrize(
    ("command", "word"),
    [
        ("pci-attach web 03:00.0", "pci/0000:03:00.0"),
        ("pci-attach 7 1:3:0.1@5,permissive=1", "pci/0001:03:00.1"),
        ("pci-attach web bdf=0000:03:00.0", "pci/0000:03:00.0"),
        ("usbdev-attach web hostbus=1 hostaddr=3", "usb-address/1.3"),
        ("usbdev-attach web hostbus=0x2,hostaddr=0xa", "usb-address/2.10"),
    ],
)
def test_a_device_is_plugged_in(xen: Xen, command: str, word: str) -> None:
    """It is asked for before; without a lease nothing is done."""
    with a_door(xen.stage.door) as door:
        assert xen.stage.run("xl", *command.split()).code == 0
        assert door.asked == [{"op": "attach", "hypervisor": "xen", "uuid": UUID, "name": "web", "devices": [word]}]
        assert xen.called == [command.split()]
        door.answer = dict(REFUSED)
        ended = xen.stage.run("xl", *command.split())
    assert (ended.code, len(xen.called)) == (1, 1)
    assert "is leased to mary" in ended.err


@pytest.mark.parametrize(
    "command", ["pci-attach web", "pci-attach web xx", "usbdev-attach web", "usbdev-attach web a=b"]
)
def test_what_is_not_clear_is_refused(xen: Xen, command: str) -> None:
    """Which device is meant has to be known."""
    with a_door(xen.stage.door) as door:
        assert xen.stage.run("xl", *command.split()).code == 1
    assert (door.asked, xen.called) == ([], [])


def test_what_has_ended_is_told(xen: Xen) -> None:
    """Behind `pci-detach`, `destroy` and a `shutdown` that waits, if they went well."""
    with a_door(xen.stage.door) as door:
        xen.stage.run("xl", "pci-attach", "web", "03:00.0")
        xen.stage.run("xl", "pci-detach", "-f", "web", "03:00.0")
        xen.stage.run("xl", "shutdown", "web")
        xen.says("other", code=3)
        assert xen.stage.run("xl", "destroy", "web").code == 3
        xen.says("other")
        assert [each["op"] for each in door.asked] == ["attach", "detach"]
        assert door.asked[1]["devices"] == ["pci/0000:03:00.0"]
        assert xen.stage.run("xl", "shutdown", "-w", "web").code == 0
        assert xen.stage.run("xl", "destroy", "web").code == 0
    assert [each["op"] for each in door.asked] == ["attach", "detach", "stop"]
    assert [each[0] for each in xen.called] == [
        "pci-attach",
        "pci-detach",
        "shutdown",
        "destroy",
        "shutdown",
        "destroy",
    ]


@pytest.mark.parametrize("command", ["pci-detach web 03:00.0", "destroy web", "shutdown -w web"])
def test_nothing_keeps_from_taking_away(xen: Xen, command: str) -> None:
    """Where nobody can be told, and not even the domain is known, it is done all the same."""
    xen.says("list", err="web is an invalid domain identifier", code=1)
    ended = xen.stage.run("xl", *command.split())
    assert (ended.code, xen.called) == (0, [command.split()])


@pytest.mark.parametrize("words", ["list", "", "-v list -v", "create -n web.cfg", "-N create web.cfg", "create --help"])
def test_all_else_is_xl(xen: Xen, words: str) -> None:
    """It is the real one, with its output and its exit code, whatever the settings are."""
    xen.stage.settings.write_text(f"[hooks]\nxl = {xen.stage.xl}\non_failure = rubbish\n")
    for kind in ("other", "list", "dry"):
        xen.says(kind, "Name ID", err="a word\n", code=5)
    ended = xen.stage.run("xl", *words.split())
    assert (ended.code, ended.out, ended.err) == (5, "Name ID\n", "a word\n")
