"""Devices for one tenant at a time: cleaned up behind each, before another gets it."""

from leasehold.events import inputs
from leasehold.events.identities import DeviceKey, Principal
from leasehold.events.refusals import RefusalCode
from tests.projections.ledger import H1, Ledger, device, ledger_with_hosts, refusal_of
from tests.scheduling import words
from tests.scheduling.words import clean, code, policy, word

CARD, OTHER = device("01:00.0"), device("0a:00.0")
RED, RED_TOO, BLUE = Principal("ann@red"), Principal("bob@red"), Principal("cid@blue")


def used_up() -> Ledger:
    """A device that is to be cleaned, behind a lease of the red tenant."""
    ledger = ledger_with_hosts()
    assert policy(ledger, CARD, clean=True).outcome == "set"
    ledger.release(ledger.granted("01:00.0", principal=RED), RED)
    return ledger


def test_another_tenant_gets_it_when_it_was_cleaned() -> None:
    """Not before; the refusal says behind whom, and what to do."""
    ledger = used_up()
    assert word(ledger, CARD) == "unclean"
    words.holds_after_restart(ledger)
    refused = ledger.lease("01:00.0", principal=BLUE)
    assert code(refused) == RefusalCode.DEVICE_UNCLEAN
    assert "red" in refusal_of(refused).message
    assert f"leasehold clean {CARD}" in refusal_of(refused).help
    assert clean(ledger, CARD).outcome == "set"
    assert word(ledger, CARD) == "free"
    assert ledger.lease("01:00.0", principal=BLUE).outcome == "granted"


def test_the_same_tenant_need_not_wait() -> None:
    """Whoever of it asks; and what it leaves behind is its own."""
    ledger = used_up()
    lease = ledger.granted("01:00.0", principal=RED_TOO)
    assert code(clean(ledger, CARD)) == RefusalCode.NOTHING_TO_CLEAN
    ledger.release(lease, RED_TOO)
    assert code(ledger.lease("01:00.0", principal=BLUE)) == RefusalCode.DEVICE_UNCLEAN


def test_a_device_that_was_cleaned_is_to_be_cleaned_behind_the_next() -> None:
    """Each lease of it counts anew."""
    ledger = used_up()
    clean(ledger, CARD)
    ledger.release(ledger.granted("01:00.0", principal=BLUE), BLUE)
    assert code(ledger.lease("01:00.0", principal=RED)) == RefusalCode.DEVICE_UNCLEAN


def test_a_confirmation_that_it_is_free_is_none_that_it_is_clean() -> None:
    """Nobody uses it, and it may still hold what the last tenant wrote there."""
    ledger = ledger_with_hosts()
    ledger.start_binder(H1)
    policy(ledger, CARD, clean=True)
    lease = ledger.granted("01:00.0", principal=RED)
    ledger.release(lease, RED)
    assert ledger.confirm_free(CARD).outcome == "freed"
    assert code(ledger.lease("01:00.0", principal=BLUE)) == RefusalCode.DEVICE_UNCLEAN


def test_while_it_is_taken_back_it_cannot_be_cleaned() -> None:
    """Its last tenant may still have it."""
    ledger = ledger_with_hosts()
    ledger.start_binder(H1)
    policy(ledger, CARD, clean=True)
    lease = ledger.granted("01:00.0", principal=RED)
    ledger.release(lease, RED)
    assert code(clean(ledger, CARD)) == RefusalCode.NOTHING_TO_CLEAN
    ledger.bind(inputs.GivenBack(DeviceKey("pci/0000:01:00.0"), lease, "igb"))
    assert clean(ledger, CARD).outcome == "set"


def test_only_what_is_to_be_cleaned_can_be() -> None:
    """Of others nobody waits for it."""
    ledger = used_up()
    assert code(clean(ledger, OTHER)) == RefusalCode.NOTHING_TO_CLEAN
    clean(ledger, CARD)
    assert code(clean(ledger, CARD)) == RefusalCode.NOTHING_TO_CLEAN


def test_a_policy_counts_from_the_next_end_of_a_lease() -> None:
    """Said while somebody has it, it counts behind him; taken back, nobody waits any more."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0", principal=RED)
    policy(ledger, CARD, clean=True)
    ledger.release(lease, RED)
    assert word(ledger, CARD) == "unclean"
    policy(ledger, CARD)
    assert word(ledger, CARD) == "free"
    assert ledger.state.devices[CARD].marks is None
    assert ledger.lease("01:00.0", principal=BLUE).outcome == "granted"


def test_it_is_cleaned_however_its_lease_ended() -> None:
    """Also of a holder who was silent, and of one who was evicted."""
    for how in ("expired", "revoked"):
        ledger = ledger_with_hosts()
        policy(ledger, CARD, clean=True)
        lease = ledger.granted("01:00.0", principal=RED)
        if how == "revoked":
            words.drain(ledger, host=H1)
            ledger.tick()
            words.untaint(ledger, "drain", host=H1)
        ledger.tick(3_600)
        assert (ledger.state.leases[lease].ended, word(ledger, CARD)) == (how, "unclean")
