"""What all tests share."""

from hypothesis import settings

pytest_plugins = ["tests.guard.plugin", "tests.support.not_run", "tests.support.shared_cluster"]

# The machine may be busy, so a single example has no deadline (a test has); a failure shows how to repeat it.
settings.register_profile("house", deadline=None, print_blob=True)
settings.load_profile("house")
