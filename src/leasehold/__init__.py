"""Leasehold hands out host devices, one owner at a time, with a history that can be proved.

    from leasehold import Client

    async with Client() as client:
        async with client.lease("pci_0000_00_05_0", holder="vm:web1", ttl_ms=60_000) as lease:
            print(lease.devices, lease.token)
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from leasehold.events.answers import Answer
    from leasehold.events.scheduling import Constraint, Need, Option
    from leasehold.services.client import Client
    from leasehold.services.holding import Lease

__version__ = "0.1.0"
__all__ = ["Answer", "Client", "Constraint", "Lease", "Need", "Option", "__version__"]

if not (Path(__file__).parent / "events").is_dir():  # pragma: no cover - only where links were unpacked as text files
    __path__.append(str(Path(__file__).resolve().parents[2]))


def __getattr__(name: str) -> object:
    """What is offered here, imported when it is first used: who only reads the vocabulary needs no network code."""
    if name == "Client":
        from leasehold.services.client import Client

        return Client
    if name == "Lease":
        from leasehold.services.holding import Lease

        return Lease
    if name == "Answer":
        from leasehold.events.answers import Answer

        return Answer
    if name in ("Constraint", "Need", "Option"):
        from leasehold.events import scheduling

        return getattr(scheduling, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
