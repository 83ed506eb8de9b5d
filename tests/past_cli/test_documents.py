"""The commands that stand in the documents are commands."""

import re
import shlex
from pathlib import Path

import click
import pytest

from leasehold.services.cli.main import cli
from tests.support.tree import ROOT

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCED = re.compile(r"^```[a-z]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_STANDING_IN = ("[", "<", "…")
"""What stands for something else: a line with one of these is a form, and not a command."""


def commands_in(path: Path) -> list[list[str]]:
    """The words of each command of ours in a document's blocks of code."""
    text = "\n".join(_FENCED.findall(path.read_text(encoding="utf-8"))).replace("\\\n", " ")
    found = []
    for line in text.splitlines():
        if line.startswith("leasehold ") and not any(mark in line for mark in _STANDING_IN):
            words = shlex.split(line, comments=True)
            found.append(words[1 : words.index(">") if ">" in words else None])
    return found


def check(words: list[str]) -> None:
    """Raises what click raises if it would not take these words; nothing is run."""
    command: click.Command = cli
    while isinstance(command, click.Group):
        if command.invoke_without_command and (not words or words[0].startswith("-")):
            break
        name, *words = words
        command = command.commands[name]
    command.make_context(command.name, words)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_documents(path: Path) -> None:
    """Every command in a block of code has a name, options and values that the command line takes."""
    for words in commands_in(path):
        check(words)


def test_what_is_looked_for_is_there() -> None:
    """Commands are found in the documents, and a wrong one is told from a right one."""
    assert len(commands_in(ROOT / "README.md")) > 5
    assert ["owners", "--at", "4352", "--archive", "/mnt/backup/archive"] in commands_in(ROOT / "docs" / "past.md")
    for wrong in (["owners", "--when", "now"], ["owners", "--at", "soon"], ["who", "a", "--between", "now"]):
        with pytest.raises(click.UsageError):
            check(wrong)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_in_documents(path: Path) -> None:
    """Every link to another file of ours leads there."""
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    missing = [link for link in links if not (path.parent / link).exists()]
    assert not missing, missing
