"""Which source is meant by what was said on a command line."""

from pathlib import Path

import pytest

from leasehold.events.errors import InvalidInputError
from leasehold.services.poller.libxl import LibxlSource
from leasehold.services.poller.sources import open_source, source_word
from leasehold.services.poller.xend import XendSource
from tests.support.commands import Commands


def test_each_source_by_its_word() -> None:
    """What `up` is told is what its poller opens."""
    assert source_word() == ""
    assert source_word(libxl=True) == "libxl"
    word = source_word(xend="xmlrpc:/run/xmlrpc.sock")
    assert word == "xend:xmlrpc:/run/xmlrpc.sock"
    source = open_source(word)
    assert isinstance(source, XendSource)
    assert source.title == "xend at xmlrpc:/run/xmlrpc.sock"
    assert isinstance(open_source("libxl"), LibxlSource)
    assert len(open_source("xend:auto").title.split(", ")) == 3


@pytest.mark.parametrize("word", ["", "xen", "libxl:x", "xend:ftp://h", "xend:/path"])
def test_what_is_none(word: str) -> None:
    """It says what would be."""
    with pytest.raises(InvalidInputError):
        open_source(word)


def test_the_command_line_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two sources, none, one that is no address: nothing is started."""
    commands = Commands(tmp_path / "none", monkeypatch, capsys)
    for words, said in (
        (("up", "--xend", "auto", "--libxl"), "from one source: xend, libxl or libvirt"),
        (("up", "--xend", "tcp://somewhere"), "an address of xend is unix:/PATH"),
        (("run", "poller", "--data", str(tmp_path)), "--xend URL, --libxl or --libvirt URI"),
    ):
        code, _, err = commands.run(*words)
        assert code == 2
        assert said in err
    assert not (tmp_path / "none").exists()
