"""`leasehold` on the command line."""

from leasehold.services.cli.main import main

__all__ = ["main"]
