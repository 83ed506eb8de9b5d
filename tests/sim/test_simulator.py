"""The simulator finds nothing in the core as it is, and finds every deliberate fault in it.

What it found once stays mended in `tests/projections/test_found_once.py`: a seed leads to the same run only as long as
nothing in the simulator changes, a case does not.
"""

import pytest

from tests.sim.mutations import MUTATIONS, caught_by
from tests.sim.run import simulate
from tests.sim.shell_mutations import RARE


@pytest.mark.parametrize("first", range(0, 200, 25))
def test_promises_hold(first: int) -> None:
    """Under every fault that the simulator knows, all promises hold and, once healed, everything becomes free."""
    for seed in range(first, first + 25):
        outcome = simulate(seed)
        assert not outcome.failure, f"seed {seed}: {outcome.failure}"


def test_all_kinds_of_events_happen() -> None:
    """The simulator's runs reach every kind of event that its actors can cause."""
    seen: set[str] = set()
    for seed in range(100):
        seen |= simulate(seed).kinds
    assert seen >= {
        "ledger_started", "grace_started", "host_registered", "host_went_stale", "host_came_back", "source_started",
        "observations_accepted", "report_requested", "picture_completed", "device_appeared", "device_changed",
        "device_replaced", "device_missing", "device_reappeared", "lease_granted", "lease_renewed", "lease_released",
        "lease_expired", "device_freed", "request_refused", "refusals_repeated", "ledger_restored", "host_ordered",
        "order_carried_out", "order_failed", "source_went_blind", "source_sees_again", "agent_retired",
        "domain_appeared", "domain_changed", "domain_started", "domain_vanished", "attachment_seen", "attachment_gone",
        "lease_outlived", "device_prepared", "prepare_failed", "device_given_back", "device_quarantined",
        "lease_revoked", "host_declared_dead", "drift_detected", "drift_resolved", "request_queued", "queued_moved",
        "queue_looked", "request_withdrawn", "waiting_ended", "leases_renewed", "lease_transferred", "lease_switched",
        "class_set", "class_removed", "quota_set", "cordoned", "uncordoned", "tainted", "untainted", "policy_set",
        "device_cleaned", "device_healed",
    }  # fmt: skip


@pytest.mark.parametrize("name", [name for name in MUTATIONS if name not in RARE])
def test_mutation_is_found(name: str) -> None:
    """A core or a shell with this deliberate fault breaks a promise within 400 seeds."""
    assert caught_by(name, 400) is not None
