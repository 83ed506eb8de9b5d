"""Moved to `leasehold.services.verifying`."""

from leasehold.services.verifying.checks import Report, check_ledger
from leasehold.services.verifying.links import check_chain
from leasehold.services.verifying.witnesses import (
    Witness,
    check_heads,
    heads_in,
    stores_in,
    witnesses_in,
)

__all__ = [
    "Report",
    "Witness",
    "check_chain",
    "check_heads",
    "check_ledger",
    "heads_in",
    "stores_in",
    "witnesses_in",
]
