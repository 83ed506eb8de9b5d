"""Domains, and devices that they use, beyond what a host or a domain may have: told of when they come."""

import pytest

from leasehold.events import inputs, limits
from leasehold.events.inputs import Observation, Observed
from leasehold.services.allocator.intake import surplus_of_domains
from tests.projections.domains import OTHER, described, polled_ledger, used
from tests.projections.ledger import H1


def _message(*observations: Observation, agent: str = "poller") -> Observed:
    return Observed(host=H1, agent=agent, run=1, counter=9, observations=observations)


def test_what_finds_no_place_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three more domains one finds a place, of two more uses none does; what is there already takes no other."""
    monkeypatch.setattr(limits, "DOMAINS_PER_HOST_MAX", 2)
    monkeypatch.setattr(limits, "USES_PER_DOMAIN_MAX", 2)
    ledger, poller = polled_ledger()
    first: list[Observation] = [inputs.DomainSeen(described()), used("pci/0000:01:00.0"), used("pci/0000:01:00.1")]
    assert surplus_of_domains(ledger.state, _message(*first)) == 0
    poller.say(*first)
    assert surplus_of_domains(ledger.state, _message(*first)) == 0
    more: list[Observation] = [used("pci/0000:01:00.2"), used("pci/0000:01:00.3"), inputs.DomainSeen(described(OTHER))]
    more += [inputs.DomainSeen(described(f"c0ffee00-0000-4000-8000-00000000000{number}")) for number in (3, 4)]
    assert surplus_of_domains(ledger.state, _message(*more)) == 2 + 2
    assert surplus_of_domains(ledger.state, _message(*more, agent="watcher")) == 0
    poller.say(*more)
    assert [len(row.uses) for _, row in sorted(ledger.state.domains.items())] == [2, 0]
