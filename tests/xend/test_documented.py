"""docs/xend.md tells of every function: ours, libxend's, the proposal's, and every command."""

import inspect
import re
from pathlib import Path

from leasehold.events import errors
from leasehold.services.cli.xend import xend
from leasehold.services.xend.client import XendClient

PAGE = (Path(__file__).parents[2] / "docs" / "xend.md").read_text(encoding="utf-8")
CODE = set(re.findall(r"`([^`\n]+)`", PAGE))
LIBXEND = {
    *("new", "new_tcp", "new_unix", "delete", "wait_for_devices", "pause", "unpause", "rename", "sysrq", "reboot"),
    *("shutdown", "destroy", "save", "restore", "get_domains", "create", "set_max_memory", "set_memory", "vbd_create"),
    *("vbd_destroy", "vif_create", "vif_destroy", "get_domain", "get_node", "node_shutdown", "node_restart", "dmesg"),
    *("dmesg_clear", "log"),
}
"""The functions of its header, without what they all begin with."""


def test_every_function_is_told_of() -> None:
    """Ours by name, and those of others in the first column of a table."""
    ours = {name for name, _ in inspect.getmembers(XendClient, inspect.iscoroutinefunction) if not name.startswith("_")}
    assert len(ours) > 40
    told = {each.partition("(")[0] for each in CODE}
    assert ours - told == {"address"}
    first = {match[1] for match in re.finditer(r"^\| `([A-Za-z_]+)` \|", PAGE, re.MULTILINE)}
    assert {f"xend_{each}" for each in LIBXEND} <= first
    assert {"virDomainGetVdevs", "virDomainCreateVdev", "virDomainDestroyVdev"} <= first


def test_every_command_is_told_of_and_each_that_is_told_of_exists() -> None:
    """In the column of commands."""
    told: set[str] = set()
    at = 0
    for line in PAGE.splitlines():
        cells = [each.strip() for each in line.strip("|").split("|")]
        if "`leasehold xend …`" in cells:
            at = cells.index("`leasehold xend …`")
        elif at and line.startswith("|"):
            told |= {each.split()[0] for each in re.findall(r"`([^`]+)`", cells[at])}
        else:
            at = 0
    assert told - {"--address"} == set(xend.commands)


def test_every_error_is_told_of() -> None:
    """With the code that programs see."""
    for each in vars(errors).values():
        if inspect.isclass(each) and issubclass(each, errors.XendError) and each is not errors.XendError:
            assert f"| `{each.__name__}` | `{each.code}` |" in PAGE
