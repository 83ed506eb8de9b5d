"""Write the golden files that are missing: `python -m tests.golden.write`. What is there is never touched.

A file may change only when the format has another version, and then it is another file.
"""

import sys

from leasehold.events import codec
from tests.golden.samples import SAMPLES, file_of


def main() -> int:
    """Write what is missing and say so."""
    missing = [name for name in SAMPLES if not file_of(name).exists()]
    for name in missing:
        file_of(name).write_bytes(codec.encode(SAMPLES[name][0]))
        print(f"wrote {file_of(name).name}")
    print(f"{len(missing)} written, {len(SAMPLES) - len(missing)} were there")
    return 0


if __name__ == "__main__":
    sys.exit(main())
