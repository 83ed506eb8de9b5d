"""Tests of the poller: what is believed, the sources held to one suite, the agent on a real bus."""

import pytest

pytest.register_assert_rewrite("tests.poller.conformance")
