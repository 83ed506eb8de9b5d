"""Who waits gets what operators let go: whatever was said and taken back, nobody waits for what he could have."""

from collections.abc import Callable

import pytest

from leasehold.events import inputs, limits
from leasehold.events.capabilities import ResetDevice
from leasehold.events.identities import DeviceKey, Principal
from leasehold.projections.answers import answer_for
from tests.projections.ledger import H1, B, Ledger, device
from tests.projections.test_operating import operate
from tests.scheduling import words
from tests.scheduling.queues import gpus, holder_of, ledger_with_gpus, queued, settle

CARDS = ("20:00.0", "21:00.0")
FIRST, SECOND = device(CARDS[0]), device(CARDS[1])
RED, BLUE = Principal("ann@red"), Principal("cid@blue")


def _fail(ledger: Ledger) -> None:
    lease = ledger.granted(CARDS[0], principal=RED)
    description = ledger.state.devices[FIRST].description
    for _ in range(limits.FAILURES_MAX):
        ledger.observe(inputs.DeviceGone(description.key))
        ledger.see(description)
    ledger.release(lease, RED)


def _use_up(ledger: Ledger) -> None:
    words.policy(ledger, FIRST, clean=True)
    ledger.release(ledger.granted(CARDS[0], principal=RED), RED)


Step = Callable[[Ledger], object]
WAYS: dict[str, tuple[Step, Step]] = {
    "a device is cordoned": (
        lambda ledger: words.cordon(ledger, device=FIRST), lambda ledger: words.uncordon(ledger, device=FIRST)
    ),
    "its host is": (lambda ledger: words.cordon(ledger, host=H1), lambda ledger: words.uncordon(ledger, host=H1)),
    "a device is tainted": (
        lambda ledger: words.taint(ledger, device=FIRST), lambda ledger: words.untaint(ledger, device=FIRST)
    ),
    "its host is drained": (
        lambda ledger: words.drain(ledger, host=H1), lambda ledger: words.untaint(ledger, "drain", host=H1)
    ),
    "a taint comes to be another": (
        lambda ledger: words.taint(ledger, device=FIRST), lambda ledger: words.taint(ledger, value="ok", device=FIRST)
    ),
    "it is to be cleaned": (_use_up, lambda ledger: words.clean(ledger, FIRST)),
    "it need not be cleaned any more": (_use_up, lambda ledger: words.policy(ledger, FIRST)),
    "it has failed": (_fail, lambda ledger: words.heal(ledger, FIRST)),
}  # fmt: skip


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_who_waits_gets_it_when_it_is_taken_back(way: str, *, by_name: bool) -> None:
    """At once, without another word of his; whether he named it, or said what he needs."""
    ledger = ledger_with_gpus(1)
    worse, better = WAYS[way]
    worse(ledger)
    settle(ledger)
    fields = {"principal": BLUE, "tolerates": ("broken-fan=ok",)}
    if by_name:
        queued(ledger, CARDS[0], **fields)
    else:
        queued(ledger, **gpus(1), **fields)
    settle(ledger)
    assert holder_of(ledger, CARDS[0]) == ""
    better(ledger)
    settle(ledger)
    assert holder_of(ledger, CARDS[0]) == "w"
    words.holds_after_restart(ledger)


def test_who_waits_to_share_gets_in_by_a_policy() -> None:
    """Once more may share a device, those who wait for that do, as many as there is room for."""
    ledger = ledger_with_gpus(1)
    words.policy(ledger, FIRST, share_max=2)
    for _ in range(2):
        ledger.granted(CARDS[0], mode="shared")
    for who in ("third", "fourth"):
        queued(ledger, CARDS[0], who=who, mode="shared")
    settle(ledger)
    words.policy(ledger, FIRST, share_max=3)
    settle(ledger)
    sharers = [ledger.state.leases[lease].holder for lease in ledger.state.devices[FIRST].sharers]
    assert sharers == ["vm", "vm", "third"]


def test_what_is_kept_is_let_go_when_its_host_is_drained() -> None:
    """A gang that keeps a device of a host keeps none there when nothing more is granted there; others may look on."""
    ledger = ledger_with_gpus(2)
    ledger.granted(CARDS[0], principal=B, ttl_ms=3_600_000)
    place = queued(ledger, **gpus(2))
    settle(ledger)
    assert SECOND in ledger.state.queue[place].keeps
    assert words.word(ledger, SECOND) == "kept"
    words.cordon(ledger, device=SECOND)
    settle(ledger)
    assert SECOND not in ledger.state.queue[place].keeps
    assert words.word(ledger, SECOND) == "cordoned"


def test_what_a_drain_ends_goes_to_who_tolerates_it() -> None:
    """Also if he has waited for it all the time."""
    ledger = ledger_with_gpus(1)
    ledger.granted(CARDS[0], principal=B, ttl_ms=3_600_000)
    queued(ledger, CARDS[0], who="other")
    queued(ledger, CARDS[0], who="mender", tolerates=("drain",))
    settle(ledger)
    answer = words.drain(ledger, device=FIRST)
    settle(ledger)
    assert holder_of(ledger, CARDS[0]) == "mender"
    key = next(key for key in ledger.state.answers if key.endswith(f"/{answer.request_id}"))
    told = answer_for(ledger.state, key)
    assert told is not None
    assert told.outcome == "set"


@pytest.mark.parametrize("way", [way for way in WAYS if "drained" not in way])
def test_an_operator_may_work_on_what_is_kept_from_leases(way: str) -> None:
    """A device that was cordoned, failed, or is to be cleaned can be reset: that is how it is mended."""
    ledger = ledger_with_gpus(1)
    WAYS[way][0](ledger)
    ledger.start_binder(H1)
    settle(ledger)
    answer = operate(ledger, FIRST, "reset")
    assert (answer.outcome, answer.what) == ("ordered", ResetDevice(device=DeviceKey("pci/0000:20:00.0")))
