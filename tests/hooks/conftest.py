"""What the tests of hooks share."""

from tests.hooks.stage import stage

__all__ = ["stage"]
