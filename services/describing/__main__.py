"""Write the descriptions: `python -m leasehold.services.describing docs` makes `asyncapi.json` and `schemas/` there."""

import json
import sys
from pathlib import Path

from leasehold.services.describing.asyncapi import document
from leasehold.services.describing.schemas import schemas


def files() -> dict[str, str]:
    """Path below the folder -> text, of all that is written."""
    described = {"asyncapi.json": document()}
    described |= {f"schemas/{name}.json": schema for name, schema in schemas().items()}
    return {name: f"{json.dumps(each, indent=2)}\n" for name, each in described.items()}


def main(arguments: list[str]) -> int:
    """Write them below the folder that is named; what is no message any more is removed."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m leasehold.services.describing FOLDER\n")
        return 2
    folder = Path(arguments[0])
    (folder / "schemas").mkdir(parents=True, exist_ok=True)
    texts = files()
    for path in (folder / "schemas").glob("*.json"):
        if f"schemas/{path.name}" not in texts:
            path.unlink()
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
