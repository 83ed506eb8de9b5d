"""The page for people says of each role what the server is told of it."""

import re

from leasehold.services import permissions
from tests.support import tree


def test_the_page_for_people_says_the_same() -> None:
    """The table in docs/permissions.md has every role with the subjects of permissions.toml, and no others."""
    page = (tree.ROOT / "docs" / "permissions.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z]+)` \| `([a-z]+)` \| (.*?) \| (.*?) \| (yes|no) \|$", page, re.MULTILINE)
    shown = {
        row[0]: (row[1], *(set(re.findall(r"`([^`]+)`", each)) for each in row[2:4]), row[4] == "yes") for row in rows
    }
    table = {
        name: (role.account, set(role.publish), set(role.subscribe), role.answers)
        for name, role in permissions.roles().items()
    }
    assert shown == table
