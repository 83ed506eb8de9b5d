"""The commands for host devices against a real `up` whose host is only watched, and domains on paper.

What they do where a binder hands over is in `tests/acceptance/test_hostdevs.py`.
"""

import csv
import io
import json
from collections.abc import Iterator

import pytest

from leasehold.events import limits
from leasehold.events.hostdevs import DRIFTS, STUBS
from tests.past_cli.polling import Story, until
from tests.support.commands import Commands
from tests.support.running import HOST, running_up

WEB, DB, THIEF = (f"c0ffee00-0000-4000-8000-00000000000{number}" for number in range(3))


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """A domain that claims two cards; another one, that has a third without a lease."""
    with running_up(tmp_path_factory.mktemp("hostdevs") / "data") as up:
        story = Story.of(up)
        poller, devices = story.poller, story.devices
        poller.hypervisor.put(WEB, name="web", domid=-1, state="halted", configured=tuple(devices[:2]))
        poller.hypervisor.put(DB, name="db", domid=-1, state="halted")
        poller.hypervisor.put(THIEF, name="thief", attached=(devices[2],))
        poller.start()
        yield story
        poller.stop()


@pytest.fixture
def commands(story: Story, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Commands:
    """The command line, aimed at the `up` of the story."""
    return Commands(story.up.data, monkeypatch, capsys)


def test_the_devices_of_a_domain(story: Story, commands: Commands) -> None:
    """Prepared together by one lease, listed with their user, kept from others by name, and given back together; each
    once, however often it is asked.
    """
    first, second = story.devices[:2]
    (lease,) = commands.objects("prepare", "web", "--for", "vm:web", "--request-id", "p1")
    assert lease["devices"] == sorted(f"{HOST}/{each}" for each in (first, second))
    (again,) = commands.objects("prepare", "web", "--for", "vm:web", "--request-id", "p1")
    assert again["lease"] == lease["lease"]
    code, _, err = commands.run("prepare", "web", "--for", "vm:web")
    assert code == 3 and "nothing_to_prepare" in err
    rows = commands.objects("hostdevs", "--active", "--pci", "--domain", "web")
    assert [(row["device"], row["lease"], row["domain"]) for row in rows] == [
        (each, lease["lease"], WEB) for each in lease["devices"]
    ]  # fmt: skip
    code, _, err = commands.run("lease", first, "--for", "vm:other")
    assert code == 3 and "vm:web" in err and lease["lease"] in err
    done = commands.out("reattach", "web")
    assert done.startswith(f"released {lease['lease']}: {HOST}/") and story.devices[0] in done
    code, _, err = commands.run("reattach", "web")
    assert code == 3 and "nothing_to_reattach" in err
    told = [row["type"] for row in commands.objects("history", lease["lease"], "--kind", "lease")]
    assert told[:2] == ["lease_granted.v2", "lease_released.v1"]


def test_lists_in_each_form(story: Story, commands: Commands) -> None:
    """As a table, as JSON and as CSV; what a domain has without a lease says so. Two options that shut each other out,
    and a domain that nobody knows, are named.
    """
    third = story.devices[2]
    table = commands.out("hostdevs", "--active")
    header, *lines = table.splitlines()
    assert header.split() == ["device", "bus", "state", "used", "by", "how", "lease", "holder", "driver"]
    (line,) = [line for line in lines if "thief" in line]
    assert line.index("xen thief") == header.index("used by")
    assert "attached, no lease" in line and " active " in line
    (row,) = [row for row in commands.objects("hostdevs", "--host", HOST) if row["domain_name"] == "thief"]
    assert (row["device"], row["attached"], row["hypervisor"]) == (f"{HOST}/{third}", True, "xen")
    rows = list(csv.DictReader(io.StringIO(commands.out("hostdevs", "--csv"))))
    assert f"{HOST}/{third}" in [row["device"] for row in rows]
    code, _, err = commands.run("hostdevs", "--pci", "--usb")
    assert (code, err) == (2, "leasehold: usb: only one of --pci and --usb can be had; leave both out for both\n")
    code, _, err = commands.run("hostdevs", "--active", "--inactive")
    assert code == 2 and err.startswith("leasehold: inactive: only one of --active and --inactive")
    code, _, err = commands.run("hostdevs", "--domain", "nobody")
    assert code == 2 and "no domain nobody is known" in err


def test_a_drift_is_shown_with_three_truths(story: Story, commands: Commands) -> None:
    """What each witness says stands below the device with its position, and what to do; also of one device, and as
    JSON. One that agrees says so. The past knows it, too.
    """
    third = story.devices[2]
    row = until(commands, "drift", device=f"{HOST}/{third}")
    assert row["kind"] == "foreign" and row["attached"]["position"] < row["since_position"]
    head, ledger, hypervisors, host, told, help_line = commands.out("drift", third).splitlines()
    assert head == f"{HOST}/{third}  foreign: {DRIFTS['foreign']}"
    for text, name in ((ledger, "ledger"), (hypervisors, "hypervisors"), (host, "host")):
        assert text.split()[0] == name
    assert f"since position {row['attached']['position']}" in hypervisors and "thief" in hypervisors
    assert "told at" in told and f"what to do   {row['help']}" in help_line
    assert f"drift: {row['kind']}" in commands.out("devices", "--cap", "pci")
    assert DRIFTS["foreign"] in commands.out("device", third)
    agreeing = commands.out("drift", story.devices[1])
    assert agreeing == "nothing differs: the ledger, the hypervisors and the hosts agree\n"
    (kept,) = [each for each in commands.objects("history", third) if each["type"] == "drift_detected.v1"]
    assert kept["position"] == row["since_position"]
    before = next(each for each in commands.objects("history", third) if each["type"] == "device_appeared.v1")
    changed = until(commands, "diff", "--from", str(before["position"]), device=row["device"], what="drift")
    assert (changed["after"], changed["position"]) == ("foreign", kept["position"])


def test_a_lease_is_revoked(story: Story, commands: Commands) -> None:
    """By an operator, with a reason that stands in the log with his name; a lease that is none is refused."""
    card = story.devices[1]
    (lease,) = commands.objects("lease", card, "--for", "vm:a", "--request-id", "v1")
    assert (lease["prepared"], lease["ended"]) == ("", "")
    code, _, err = commands.run("revoke", lease["lease"])
    assert code == 2 and "--reason" in err
    done = commands.out("revoke", lease["lease"], "--reason", "the host is to be emptied")
    assert done.startswith(f"revoked {lease['lease']}: {HOST}/{card} (")
    assert (again := commands.run("revoke", lease["lease"], "--reason", "once more"))[0] == 3
    assert "lease_ended" in again[2]
    (row,) = [row for row in commands.objects("leases", "--all") if row["lease"] == lease["lease"]]
    assert row["ended"] == "revoked"
    end = until(commands, "blame", "v1", because="ended by", depth=0)
    assert "the host is to be emptied" in end["text"]
    until(commands, "who", card, lease=lease["lease"], ended="revoked")


def test_what_only_managed_hosts_do(story: Story, commands: Commands) -> None:
    """Detaching, reattaching and resetting is refused where nobody acts, as is a stub driver; words that are none are
    named before anybody is asked.
    """
    card = story.devices[1]
    until(commands, "devices", key=card, state="free")
    for operation in ("detach", "reattach", "reset"):
        code, _, err = commands.run("nodedev", operation, card)
        assert code == 3 and err.startswith("refused (host_not_managed)"), err
    code, out, _ = commands.run("nodedev", "reset", card, "--json")
    assert code == 3 and json.loads(out)["code"] == "host_not_managed"
    code, _, err = commands.run("lease", card, "--for", "vm:a", "--driver", "e1000e")
    assert code == 2 and err.startswith("leasehold: driver: 'e1000e' is no stub driver")
    code, _, err = commands.run("nodedev", "detach", card, "--driver", "nvidia")
    assert code == 2 and all(stub in err for stub in ("vfio-pci", "xen-pciback", "pci-stub")) and STUBS
    code, _, err = commands.run("nodedev", "vfs", card, str(limits.VIRTUAL_FUNCTIONS_MAX + 1))
    assert code == 2


def test_a_host_that_is_heard_is_not_dead(story: Story, commands: Commands) -> None:
    """It is refused, and says who is heard; one that nobody knows is named."""
    code, _, err = commands.run("dead", HOST, "--reason", "it burns")
    assert code == 3 and err.startswith("refused (host_alive)") and "watcher" in err
    code, _, err = commands.run("dead", "nowhere", "--reason", "it burns")
    assert code == 3 and "nowhere" in err
