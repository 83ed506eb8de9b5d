"""Every program of the tests, be it pytest or another, is kept from this machine's own devices."""

from tests.guard.children import sitecustomize

sitecustomize.install()
