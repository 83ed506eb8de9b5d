"""`python -m tests.hostdevs`: write the tables of docs/libvirt-scenarios.md anew."""

import importlib
import sys

from tests.hostdevs.table import BEGIN, DOCUMENT, MODULES, tables


def main() -> int:
    """Behind the line that says so; what stands before it stays."""
    for name in MODULES:
        importlib.import_module(f"tests.hostdevs.{name}")
    head, found, _ = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    assert found, f"{DOCUMENT} has no line {BEGIN!r}"
    DOCUMENT.write_text(f"{head}{BEGIN}\n{tables()}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
