"""Leasehold hands out host devices, one owner at a time, with a history that can be proved."""

__version__ = "0.1.0"
