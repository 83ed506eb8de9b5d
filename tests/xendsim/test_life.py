"""The little hypervisor: what happens with time, and what xend shows of it."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leasehold.events.errors import InvalidInputError, XendSimError
from leasehold.services.xendsim import control
from leasehold.services.xendsim.calls import Xend
from leasehold.services.xendsim.configuring import parsed
from leasehold.services.xendsim.hypervisor import Host
from leasehold.services.xendsim.state import Domain, State
from leasehold.services.xendsim.web import printed
from leasehold.services.xendsim.wire import Faults

START_MS = 1_000_000_000
LONG_MS = 120_000
"""A domain that ran for so long is started again."""
PCI = "(device (pci (dev (domain 0x0000) (bus 0x03) (slot 0x00) (func 0x0))))"
VM = "(vm (name {name}) (memory 128) (vcpus 1) {rest})"


class Bench:
    """A host without sockets, to which orders can be given."""

    def __init__(self, seed: int = 0) -> None:
        self.host = Host(State(seed=seed), START_MS)
        self.xend = Xend(self.host)
        self.faults = Faults()

    def down(self, for_ms: int, empty_ms: int) -> None:
        """There is nothing to close."""

    def order(self, *words: str) -> object:
        return control.act(self, list(words))

    def run(self, name: str, rest: str = "", *, for_ms: int = LONG_MS) -> Domain:
        """A domain that has run for a while."""
        domain = self.xend.create(parsed(VM.format(name=name, rest=rest))[0])
        self.xend.unpause(domain)
        self.wait(for_ms)
        return domain

    def define(self, name: str, rest: str = "") -> Domain:
        """A managed domain, halted."""
        self.xend.new(parsed(VM.format(name=name, rest=rest))[0])
        return self.host.find(name)

    def wait(self, ms: int) -> None:
        """Let time go on in small steps, as sockets do."""
        end_ms = self.host.now_ms + ms
        while (due_ms := self.host.next_ms()) is not None and due_ms <= end_ms:
            self.host.advance(due_ms)
        self.host.advance(end_ms)

    def names(self, state: str = "all") -> list[str]:
        return [each.name for each in self.xend.listed(state)]

    def free(self) -> list[str]:
        return list(self.host.assignable())


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_reboot(bench: Bench) -> None:
    """A reboot keeps name and uuid; between the two numbers there is a time with no such domain."""
    domain = bench.run("web1")
    uuid, domid = domain.uuid, domain.domid
    bench.order("reboot", "web1")
    timing = bench.host.state.timing
    bench.wait(timing.guest_ms)
    assert bench.xend.printer.letters(domain) == "---s--"
    bench.wait(timing.ended_ms)
    assert bench.names() == ["Domain-0"]
    bench.wait(timing.gap_ms)
    again = bench.host.find("web1")
    assert (again.uuid, again.domid > domid, bench.names("running")) == (uuid, True, ["Domain-0", "web1"])


def test_reboot_with_devices(bench: Bench) -> None:
    """What a domain has it has again after a reboot, however long Xen holds it in between."""
    bench.run("gpu", PCI)
    bench.order("linger", "gpu", "5000")
    bench.order("reboot", "gpu")
    bench.wait(4_000)
    assert bench.names() == ["Domain-0"]
    bench.wait(4_000)
    assert bench.names("running") == ["Domain-0", "gpu"]
    assert bench.host.assigned() == {"0000:03:00.0": bench.host.find("gpu").domid}


def test_reboot_too_fast(bench: Bench) -> None:
    """Who ran for less than a minute is not started again; a managed one stays as halted."""
    bench.run("young", for_ms=1_000)
    managed = bench.define("kept")
    bench.xend.start(managed)
    for name in ("young", "kept"):
        bench.order("reboot", name)
    bench.wait(10_000)
    assert bench.names() == ["Domain-0", "kept"]
    assert bench.names("halted") == ["kept"]
    assert any("restarting too fast" in line for line in bench.host.state.log)


@pytest.mark.parametrize(
    ("on_crash", "left"),
    [
        ("preserve", {"web1": 5}),
        ("destroy", {}),
        ("restart", {"web1": 2}),
        ("coredump-restart", {"web1": 2}),
        ("rename-restart", {"web1": 2, "Domain-": 5}),
    ],
)
def test_crash(bench: Bench, on_crash: str, left: dict[str, int]) -> None:
    """A crash ends as `on_crash` says; renamed, the dead one has a new uuid, and the new one the old."""
    uuid = bench.run("web1", f"(on_crash {on_crash})").uuid
    bench.order("crash", "web1")
    assert bench.names("crashed") == ["web1"]
    assert bench.xend.printer.letters(bench.host.find("web1")) == "----c-"
    bench.wait(20_000)
    found = {each.name: bench.host.status(each) for each in bench.xend.listed("all") if each.domid}
    assert {name.partition("-")[0] + "-" * ("-" in name): status for name, status in found.items()} == left
    if "web1" in found:
        assert bench.host.find("web1").uuid == uuid
    if len(found) == 2:
        assert bench.host.find(next(name for name in found if name != "web1")).uuid != uuid


def test_dying_holds_devices(bench: Bench) -> None:
    """A destroyed domain is gone from the list at once, and its PCI function is nobody's only when Xen lets go."""
    domain = bench.run("gpu", PCI)
    bench.order("linger", "gpu", "5000")
    assert "0000:03:00.0" not in bench.free()
    bench.xend.destroy(domain)
    assert bench.names() == ["Domain-0"]
    assert "0000:03:00.0" not in bench.free()
    with pytest.raises(XendSimError, match="already been assigned to other domain"):
        bench.run("thief", PCI)
    bench.wait(5_000)
    assert "0000:03:00.0" in bench.free()


def test_dying_for_ever(bench: Bench) -> None:
    """One that never dies is held until it is buried."""
    domain = bench.run("gpu", PCI)
    bench.order("linger", "gpu", "-1")
    bench.order("kill", "gpu")
    bench.wait(86_400_000)
    assert "0000:03:00.0" not in bench.free()
    bench.order("bury", domain.uuid)
    assert "0000:03:00.0" in bench.free()


def test_claims(bench: Bench) -> None:
    """A definition may claim what another has; its start fails, and the definition stays."""
    bench.run("gpu", PCI)
    planner = bench.define("planner", PCI)
    with pytest.raises(XendSimError, match="already been assigned"):
        bench.xend.start(planner)
    assert (bench.names("halted"), planner.domid) == (["planner"], -1)
    assert b"(bus 0x03)" in printed(bench.xend.printer.domain(planner))


def test_guests_that_do_not_listen(bench: Bench) -> None:
    """A paused guest hears what it was asked for when it goes on; a deaf one never."""
    for name in ("paused", "deaf"):
        bench.run(name)
    bench.order("hang", "deaf")
    bench.xend.pause(bench.host.find("paused"))
    for name in ("paused", "deaf"):
        bench.xend.shutdown(bench.host.find(name), "poweroff")
    bench.wait(LONG_MS)
    assert bench.names() == ["Domain-0", "deaf", "paused"]
    bench.xend.unpause(bench.host.find("paused"))
    bench.wait(LONG_MS)
    assert bench.names() == ["Domain-0", "deaf"]


def test_vanishing(bench: Bench) -> None:
    """One that is to vanish is in the next list, and nowhere afterwards."""
    bench.run("web1")
    bench.order("vanish", "web1")
    listed = bench.xend.listed("all")
    bench.xend.listing_done(listed)
    assert [each.name for each in listed] == ["Domain-0", "web1"]
    with pytest.raises(XendSimError, match="web1"):
        bench.host.find("web1")


def test_suspend(bench: Bench) -> None:
    """A suspended domain is known, without number and letters; resumed it has another number."""
    domain = bench.define("cold")
    bench.xend.start(domain)
    first = domain.domid
    bench.xend.suspend(domain)
    shown = printed(bench.xend.printer.domain(domain))
    assert b"(status 3)" in shown
    assert b"(domid" not in shown
    assert b"(state " not in shown
    bench.xend.resume(domain)
    assert domain.domid > first


def test_saved_domains(bench: Bench) -> None:
    """A saved domain is gone, and back after it was restored: the same uuid, another number; no file is made."""
    domain = bench.run("web1", PCI)
    uuid, domid = domain.uuid, domain.domid
    bench.xend.save(domain, "/tmp/web1.save")
    assert bench.names() == ["Domain-0"]
    bench.wait(LONG_MS)
    back = bench.xend.restore("/tmp/web1.save")
    assert (back.uuid, back.domid > domid) == (uuid, True)
    assert "0000:03:00.0" not in bench.free()


def test_order_of_names(bench: Bench) -> None:
    """A domain that is called by the number of another is found by it before that one."""
    first = bench.run("web1")
    second = bench.run(str(first.domid))
    assert bench.host.find(str(first.domid)) is second
    assert bench.host.find(first.uuid) is first


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), rounds=st.lists(st.integers(0, 3_000), max_size=25))
def test_anything(seed: int, rounds: list[int]) -> None:
    """Whatever happens: numbers are unique and never come again, a PCI function has one owner at most, all can be
    printed, and what is written down is what there is.
    """
    bench = Bench(seed)
    bench.order("timing", "restart_after_ms", "1000")
    numbers: dict[int, str] = {}
    for ms in rounds:
        bench.order("churn", "3")
        bench.wait(ms)
        live = [each for each in bench.host.state.domains if each.domid >= 0]
        held = [f.address for each in live for device in each.devices if device.live for f in device.functions]
        held += [address for each in bench.host.state.dying for address in each.functions]
        assert len(held) == len(set(held)), held
        assert len({each.domid for each in live}) == len(live)
        for each in live:
            assert numbers.setdefault(each.domid, each.uuid) == each.uuid
        for each in bench.host.shown():
            assert printed(bench.xend.printer.domain(each)).startswith(b"(domain ")
        state = bench.host.state
        assert msgspec.json.decode(msgspec.json.encode(state), type=State) == state


def test_orders_that_cannot_be(bench: Bench) -> None:
    """A wrong order says what would be right, and nothing happens."""
    bench.run("web1")
    before = msgspec.json.encode(bench.host.state)
    for words, said in (
        (["explode"], "none of crash"),
        (["crash"], "`crash DOM` is how it is said"),
        (["crash", "nobody"], "no domain 'nobody'"),
        (["crash", "Domain-0"], "does not run"),
        (["plug", "03:00"], "not a PCI address"),
        (["unplug", "0000:55:00.0"], "there is no"),
        (["timing", "patience", "1"], "none of guest_ms"),
        (["slow", "soon"], "no number"),
        (["bury", "web1"], "no dying domain"),
    ):
        with pytest.raises(InvalidInputError, match=said):
            bench.order(*words)
    assert msgspec.json.encode(bench.host.state) == before
