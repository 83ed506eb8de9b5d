"""Keeps the read models beside an archive: follows its records, and writes what they say, in transactions of their own.

Archiving does not wait for this: the models follow the archive. What is lost of them is built again from it.
"""

from pathlib import Path

from leasehold.events.errors import LeaseholdError
from leasehold.services.ledger.port import Ledger


class ModelsKeeper:
    """The one writer of a file of read models. `start` it once, `run` it, and `stop` it in the end."""

    def __init__(self, ledger: Ledger, path: Path) -> None:
        """`ledger` stays its owner's; `path` is the file of the models."""
        self.path = path
        self.sequence = 0
        """Of the last record that the models have."""
        self.trouble = ""
        """Why it does not go on at the moment; empty: it does."""
        self.failure: LeaseholdError | None = None
        """Why it has stopped by itself: a record that cannot follow."""
        self._ledger = ledger

    async def start(self) -> None:
        """Open the file, or make it; models of another ledger or another schema are cleared, to be built anew.

        Raises:
            StoreInUseError: another process writes it.
            StorageError: it cannot be opened.
        """

    async def run(self) -> None:
        """Follow the archive until `stop`. A full disk is waited out; a record that cannot follow ends it (`failure`)."""

    async def catch_up(self) -> int:
        """Instead of `run`: up to the record that is the last one now, and no further; its sequence.

        Raises:
            CorruptLedgerError: a record cannot follow.
            StorageError: the disk does not take it.
        """
        return self.sequence

    async def wait_for(self, position: int, timeout_s: float) -> bool:
        """Wait until the models have the record that holds `position`; `False` if they did not within `timeout_s`."""
        return bool(position) and bool(timeout_s)

    async def stop(self) -> None:
        """End it, and close the file. A second time does nothing."""
