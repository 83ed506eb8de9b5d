"""What we say of the machine that this process sees: its picture, as JSON. Run beside libvirtd, in its namespaces."""

import sys

import msgspec

from leasehold.services.watcher.picture import take_picture


def main() -> int:
    """Print the descriptions of all devices."""
    sys.stdout.buffer.write(msgspec.json.encode(list(take_picture().values())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
