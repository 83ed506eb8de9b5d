"""A domain may be called anything, also as it, or another one, is called by its uuid: nothing is taken for that."""

from leasehold.events import inputs
from leasehold.events.identities import DomainId
from leasehold.events.inputs import DomainGone, DomainSeen
from leasehold.projections.domains import all_named
from tests.past.domains import HOSTS, UUIDS, DomainLedger, domain, key_of

H1, OWN, OTHER = HOSTS[0], UUIDS[1], UUIDS[2]
ID = DomainId(f"h1/xen/{OWN}")


def test_a_domain_that_is_called_as_its_uuid_is() -> None:
    """It is found by its uuid, also when it is called otherwise, and it can go."""
    ledger = DomainLedger()
    for name in (OWN, f"xen/{OWN}", "web", OWN):
        ledger.tell(H1, DomainSeen(domain(OWN, name=name)))
        assert [all_named(ledger.state, text) for text in (name, OWN, f"xen/{OWN}", ID)] == [(ID,)] * 4
    ledger.tell(H1, DomainGone(key_of(OWN)))
    assert all_named(ledger.state, OWN) == ()
    assert not ledger.state.indexes.domain_names


def test_a_name_keeps_no_lease_alive() -> None:
    """A lease for a domain ends although another one has its uuid for a name."""
    ledger = DomainLedger()
    asked = ledger.request("h1/pci/0000:01:00.0", domain=OWN, gone_ms=0)
    lease = ledger.ask(asked).lease
    ledger.tell(H1, DomainSeen(domain(OWN)), DomainSeen(domain(OTHER, name=OWN)))
    ledger.tell(H1, inputs.DomainGone(key_of(OWN)))
    ledger.tick(1)
    assert ledger.state.leases[lease].ended == "outlived"
