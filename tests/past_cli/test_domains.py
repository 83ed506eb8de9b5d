"""The commands for domains against a real `up`, and the real poller of a hypervisor on paper."""

import csv
import io
import json
from collections.abc import Iterator

import pytest

from tests.past_cli.polling import Story, until
from tests.support.commands import Commands
from tests.support.running import HOST, running_up

WEB, DB, GONE = (f"c0ffee00-0000-4000-8000-00000000000{number}" for number in range(3))


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """Two domains, one of which has a device without a lease."""
    with running_up(tmp_path_factory.mktemp("domains") / "data") as up:
        story = Story.of(up)
        poller, devices = story.poller, story.devices
        poller.hypervisor.put(WEB, name="web", attached=(devices[0],), configured=(devices[0],))
        poller.hypervisor.put(DB, name="db", domid=-1, state="halted", configured=(devices[1],))
        poller.start()
        yield story
        poller.stop()


@pytest.fixture
def commands(story: Story, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Commands:
    """The command line, aimed at the `up` of the story."""
    return Commands(story.up.data, monkeypatch, capsys)


def test_domains_in_each_form(story: Story, commands: Commands) -> None:
    """The list has both domains with what they use and whose that is, as a table, as JSON and as CSV; filtered, too."""
    table = commands.out("domains")
    assert [line.split()[0] for line in table.splitlines()] == ["name", "web", "db"]
    assert f"{story.devices[0]} (foreign)" in table and f"{story.devices[1]} (configured)" in table
    web, db = commands.objects("domains")
    assert (web["uuid"], web["domid"], web["state"], web["uses"][0]["foreign"]) == (WEB, 5, "running", True)
    assert db["state"] == "halted" and not db["uses"][0].get("foreign")
    assert [row["uuid"] for row in csv.DictReader(io.StringIO(commands.out("domains", "--csv")))] == [WEB, DB]
    assert [row["name"] for row in commands.objects("domains", "--state", "halted", "--host", HOST)] == ["db"]


def test_one_domain_by_each_of_its_names(story: Story, commands: Commands) -> None:
    """By name, uuid in any spelling, key and id; who is none is named."""
    for name in ("web", WEB, WEB.replace("-", "").upper(), f"xen/{WEB}", f"{HOST}/xen/{WEB}"):
        shown = commands.out("domain", name)
        assert WEB in shown and "domid 5" in shown and "attached, foreign" in shown
    code, _, err = commands.run("domain", "nobody")
    assert (code, err) == (2, "leasehold: name: no domain nobody is known\n")
    for past in ((), ("--at", "now")):
        code, _, err = commands.run("domain", "", *past)
        assert (code, err) == (2, "leasehold: name: '' is no domain's: say its name, uuid, key or id\n")
    code, _, err = commands.run("domain", "web", "--at", "0")
    assert code == 2 and "no domain web is known" in err


def test_who_uses_a_device(story: Story, commands: Commands) -> None:
    """A device shows its users; one that a domain has without a lease is foreign, and is refused with that domain."""
    first, second = story.devices[:2]
    assert "web (attached)" in commands.out("devices")
    (row,) = commands.objects("device", first)
    assert row["state"] == "foreign" and f"domain web ({HOST}/xen/{WEB})" in row["reason"]
    assert "db" in commands.out("device", second) and "(configured" in commands.out("device", second)
    code, _, err = commands.run("lease", first, "--for", "vm:a")
    assert code == 3 and "domain web" in err
    code, _, err = commands.run("lease", second, "--for", "vm:a", "--gone", "5s")
    assert code == 2 and "--domain" in err


def test_a_lease_that_ends_with_its_domain(story: Story, commands: Commands) -> None:
    """It is shown with its domain, lives while that runs, and is over soon after that is not there; why is told."""
    card = story.devices[2]
    bond = ("--domain", GONE, "--gone", "500ms")
    asked = commands.out("lease", card, "--for", "vm:c", *bond, "--request-id", "c1", "--json")
    lease = json.loads(asked)["lease"]
    story.poller.put(GONE, name="short", domid=9, attached=(card,))
    row = until(commands, "domains", uuid=GONE, state="running")
    assert row["leases"] == [lease] and not row["uses"][0].get("foreign")
    shown = commands.out("show", lease)
    assert f"{GONE}, until 500ms after it is gone" in shown and "with its domain" in shown
    story.poller.put(GONE, name="short", domid=-1, state="halted")
    until(commands, "leases", "--all", lease=lease, ended="outlived")
    assert "was there, and has been gone for too long" in commands.out("history", lease)
    blamed = [each["because"] for each in commands.objects("blame", "c1")]
    assert "gone by" in blamed
    told = [each["type"].partition(".")[0] for each in commands.objects("history", "short")]
    assert told[:3] == ["lease_granted", "domain_appeared", "attachment_seen"]
    assert {"attachment_gone", "domain_changed", "lease_outlived"} <= set(told)


def test_domains_as_they_were(story: Story, commands: Commands) -> None:
    """At a position of its past a domain is as it was, by the bus and from the archive's files alone."""
    started = next(
        each for each in commands.objects("history", "web", "--kind", "domain") if "attachment_seen" in each["type"]
    )
    at = str(started["position"])
    for where in ((), ("--archive", commands.archive)):
        (row,) = [each for each in commands.objects("domains", "--at", at, *where) if each["name"] == "web"]
        assert row["place"]["at_position"] == int(at) and len(row["uses"]) == 1
        assert "as of position" in commands.run("domain", "web", "--at", at, *where)[1]


def test_an_agent_that_is_gone_is_retired(story: Story, commands: Commands) -> None:
    """While it is heard, an operator is told so; the command says what it did when it is not."""
    code, _, err = commands.run("retire", HOST, "poller", "--reason", "dismantled")
    assert code == 3 and "agent_alive" in err
    code, _, err = commands.run("retire", HOST, "nobody", "--reason", "dismantled")
    assert code == 3 and "nobody" in err
    story.poller.stop()
    until(commands, "hosts", host=HOST, stale="poller: it was stopped")
    assert len(commands.objects("domains")) == 3
    assert commands.out("retire", HOST, "poller", "--reason", "dismantled") == "retired (done)\n"
    until(commands, "hosts", host=HOST, stale="")
    assert commands.objects("domains") == []
    assert "will not come back (dismantled)" in commands.out("history", HOST, "--kind", "host")
