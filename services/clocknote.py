"""The ledger's time over a restart: a note beside the store, from which the next process carries the clock on.

The pair of clocks in it stays true for as long as the machine runs, so it is written when that pair changes, and else
once an hour. A note that is missing, damaged or of another boot costs nothing but a longer grace time.
"""

import asyncio
import logging
import os
from pathlib import Path
from typing import Final

import msgspec

from leasehold.events import limits
from leasehold.projections.rows import Head
from leasehold.projections.timekeeping import ClockNote, LedgerClock

_log: Final = logging.getLogger(__name__)
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_BYTES_MAX: Final = 4_096


class ClockKeeper:
    """The note at `path`, for one process of one allocator. A disk that does not take it stops no decision."""

    def __init__(self, path: Path, writer: str, *, boot_id: str | None = None) -> None:
        """Reads which boot this is, unless told by `boot_id`; nothing else is touched."""
        self.path = path
        self._writer = writer
        self._boot_id = _this_boot() if boot_id is None else boot_id
        self._noted: ClockNote | None = None
        self._complaint = ""

    def clock(self, head: Head, monotonic_ns: int) -> LedgerClock:
        """The clock of the process before, carried on; a new one, if that is not possible."""
        clock = LedgerClock()
        note = self._read()
        why = "there is no note of it"
        if note is not None:
            why = note.refused(boot_id=self._boot_id, head=head, monotonic_ns=monotonic_ns)
            if not why:
                clock.resume(note)
        _log.info("the clock is %s", f"a new one: {why}" if why else "carried on")
        return clock

    async def keep(self, clock: LedgerClock, ledger_id: str) -> None:
        """Write `clock` down if the note is not true any more, or an hour old."""
        if not (ledger_id and self._boot_id) or clock.trouble:
            return
        note = clock.note(boot_id=self._boot_id, ledger_id=ledger_id, writer=self._writer)
        if self._noted is not None and _is_true(self._noted, note):
            return
        try:
            await asyncio.to_thread(self._write, note)
        except OSError as error:
            if str(error) != self._complaint:
                _log.error("the clock is not noted: %s", error)
            self._complaint = str(error)
        else:
            self._noted = note

    def _read(self) -> ClockNote | None:
        try:
            with self.path.open("rb") as file:
                return msgspec.json.decode(file.read(_BYTES_MAX), type=ClockNote)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            _log.warning("%s is not read: %s", self.path, error)
            return None

    def _write(self, note: ClockNote) -> None:
        # Whole or not at all. It is not synced: a machine that fails comes back with another boot.
        fresh = self.path.with_name(self.path.name + ".new")
        opened = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(opened, "wb") as file:
            file.write(msgspec.json.encode(note))
        fresh.replace(self.path)


def _this_boot() -> str:
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError as error:
        _log.warning("which boot this is cannot be told: %s", error)
        return ""


def _is_true(noted: ClockNote, now: ClockNote) -> bool:
    """Whether `noted` still says the same clock as `now`, and is not too old."""
    elapsed_ns = now.monotonic_ns - noted.monotonic_ns
    drift_ns = now.ledger_ns - noted.ledger_ns - elapsed_ns
    same = (noted.ledger_id, noted.since_ns) == (now.ledger_id, now.since_ns)
    return same and abs(drift_ns) <= limits.CLOCK_TOLERANCE_NS and elapsed_ns < limits.CLOCK_NOTE_NS
