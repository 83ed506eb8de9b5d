"""Who of the program may write to a sysfs at all is read in its text: nobody but the creator and the binder."""

import ast
from collections.abc import Iterator
from typing import Final

import pytest

from tests.support import tree

MAY_WRITE: Final = ("services/creator/", "services/binder/")
ABOUT_SYSFS: Final = ("leasehold.services.watcher", "leasehold.services.creator", "leasehold.services.binder")
_WRITE_FLAGS: Final = frozenset({"O_WRONLY", "O_RDWR", "O_APPEND", "O_TRUNC", "O_CREAT"})
_WRITE_CALLS: Final = frozenset({"write_text", "write_bytes", "truncate", "pwrite", "sendfile"})


def knows_sysfs(root: ast.Module) -> bool:
    """Whether a module has to do with a machine's devices: by what it imports, or by a path that it names."""
    for node in ast.walk(root):
        match node:
            case ast.ImportFrom(module=str(module)) if module.startswith(ABOUT_SYSFS):
                return True
            case ast.Import(names=names) if any(each.name.startswith(ABOUT_SYSFS) for each in names):
                return True
            case ast.Constant(value=str(text)) if text == "/sys" or text.startswith("/sys/"):
                return True
    return False


def writes(root: ast.Module) -> Iterator[int]:
    """The lines in which a file is opened for writing, or written to by its name."""
    for node in ast.walk(root):
        match node:
            case ast.Attribute(attr=attribute) if attribute in _WRITE_FLAGS or attribute in _WRITE_CALLS:
                yield node.lineno
            case ast.Call(func=ast.Name(id="open") | ast.Attribute(attr="open" | "fdopen")):
                modes = [*node.args[:2], *(each.value for each in node.keywords if each.arg == "mode")]
                texts = [each.value for each in modes if isinstance(each, ast.Constant) and isinstance(each.value, str)]
                if any(set(text) <= set("rwaxbt+") and set(text) & set("wax+") for text in texts):
                    yield node.lineno


def breaches(path: str, text: str) -> list[str]:
    """Where a module that knows of a sysfs writes to files, and may not."""
    root = ast.parse(text, path)
    if path.startswith(MAY_WRITE) or not knows_sysfs(root):
        return []
    return [f"{path}:{line}" for line in writes(root)]


def test_nobody_else_writes() -> None:
    """No other module that has to do with a machine's devices writes to any file."""
    paths = [path for path in tree.files() if path.startswith("services/") and path.endswith(".py")]
    assert len([path for path in paths if path.startswith("services/watcher/")]) > 5
    found = [each for path in paths for each in breaches(path, (tree.ROOT / path).read_text(encoding="utf-8"))]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "open('/sys/bus/pci/rescan', 'w')",
        "from leasehold.services.watcher.sysfs import HostRoot\nopen(path, mode='r+')",
        "import leasehold.services.watcher.sysfs\nos.open(path, os.O_WRONLY)",
        "ROOT = '/sys'\nPath(ROOT, 'bus/pci/rescan').write_text('1')",
        "ROOT = '/sys'\nPath(ROOT).open('ab')",
    ],
)
def test_what_is_looked_for_is_found(text: str) -> None:
    """Each way to write is found in the watcher, and let through in the binder."""
    assert len(breaches("services/watcher/x.py", text)) == 1
    assert breaches("services/binder/x.py", text) == []


def test_reading_is_let_through() -> None:
    """What only reads is no breach, and neither is a file of one's own where no sysfs is known."""
    assert (
        breaches("services/watcher/x.py", "open('/sys/x'), open('/sys/x', 'rb'), os.open('/sys/x', os.O_RDONLY)") == []
    )
    assert breaches("services/archive/x.py", "open('notes', 'w')") == []
