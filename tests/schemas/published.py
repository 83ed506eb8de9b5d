"""The schemas as they were published, which nothing may break: `python -m tests.schemas.published` adds what is new.

A schema that changed in what it binds to gets one more file beside the ones before. No file is ever changed.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from leasehold.services.describing.messages import Way, messages
from leasehold.services.describing.schemas import schemas
from tests.golden.words import FOLDER
from tests.schemas.compatible import bare, breaks

PUBLISHED = FOLDER / "published"
Schema = dict[str, Any]


def published() -> dict[str, list[Schema]]:
    """Message -> all its schemas, oldest first."""
    found: dict[str, list[Schema]] = {}
    for path in sorted(PUBLISHED.glob("*.json"), key=lambda path: (path.name.partition("+")[0], len(path.name), path)):
        found.setdefault(_message_of(path), []).append(json.loads(path.read_bytes()))
    return found


def _message_of(path: Path) -> str:
    return path.name.removesuffix(".json").partition("+")[0]


def broken(before: dict[str, list[Schema]], now: dict[str, Schema]) -> list[str]:
    """What of all that was published does not hold any more, in words."""
    found = [f"{name}: it was published, and is gone" for name in sorted(before.keys() - now.keys())]
    for name in sorted(before.keys() & now.keys()):
        found += [f"{name}: {what}" for old in before[name] for what in breaks(old, now[name], _way_of(name))]
    return found


def _way_of(name: str) -> Way:
    found = messages().get(name)
    return found.way if found else Way.TOLD


def unpublished(before: dict[str, list[Schema]], now: dict[str, Schema]) -> Iterable[str]:
    """Messages whose schema, as it is now, was never published."""
    return sorted(name for name in now if bare(now[name]) not in before.get(name, []))


def main() -> int:
    """Write what is new, unless it breaks what was published."""
    before, now = published(), schemas()
    problems = broken(before, now)
    for problem in problems:
        print(f"{problem}. Give the type another version, and keep this one readable.", file=sys.stderr)
    if problems:
        return 1
    PUBLISHED.mkdir(exist_ok=True)
    for name in unpublished(before, now):
        count = len(before.get(name, []))
        path = PUBLISHED / (f"{name}+{count}.json" if count else f"{name}.json")
        path.write_text(f"{json.dumps(bare(now[name]), indent=1)}\n", encoding="utf-8")
        print(f"published {path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
