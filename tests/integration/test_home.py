"""Files with secrets in a directory that others may write to, too."""

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from leasehold.events.errors import InvalidInputError, UnavailableError
from leasehold.services import credentials, home
from leasehold.services.cli import keys


def test_nobody_else_holds_the_file_of_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody has laid files and links of his under every name that could be foreseen: none of them is written to."""
    opened: list[tuple[Path, int]] = []
    real = os.open

    def noting(path: Path, flags: int, mode: int = 0o777) -> int:
        opened.append((path, flags))
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", noting)
    his = tmp_path / f"key.json.{os.getpid()}.new"
    his.write_text("his")
    (tmp_path / "elsewhere").write_text("his")
    (tmp_path / "key.json").symlink_to(tmp_path / "elsewhere")
    for _ in range(2):
        home.write_private(tmp_path / "key.json", b"secret")
    assert his.read_text() == (tmp_path / "elsewhere").read_text() == "his"
    assert (tmp_path / "key.json").read_bytes() == b"secret" and not (tmp_path / "key.json").is_symlink()
    assert (tmp_path / "key.json").stat().st_mode & 0o777 == 0o600
    assert len({path for path, _ in opened}) == len(opened) == 2
    assert all(flags & os.O_EXCL for _, flags in opened)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_key_that_cannot_be_registered_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk of the register is full: it is told which file could not be written, and no key lies about."""
    data, out = tmp_path / "data", tmp_path / "x.json"
    arguments = ["add", "scheduler", "x", "--data", str(data), "--cluster", "test", "--out", str(out)]
    real = home.write_private

    def full(path: Path, body: bytes) -> None:
        if path.name == credentials.REGISTER_FILE:
            raise OSError(28, "No space left on device")
        real(path, body)

    with monkeypatch.context() as patched:
        patched.setattr(credentials, "write_private", full)
        done = CliRunner().invoke(keys.keys, arguments)
        assert isinstance(done.exception, UnavailableError)
        assert "principals.json cannot be written (No space left" in str(done.exception)
        assert not out.exists()
    assert CliRunner().invoke(keys.keys, arguments).exit_code == 0
    assert out.exists()


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_directory_that_others_can_write_to_holds_no_keys(tmp_path: Path, mode: int) -> None:
    """Who can write there could put his own files in the place of ours: it is refused, with what would help."""
    tmp_path.chmod(mode)
    with pytest.raises(InvalidInputError, match="chmod go-w") as caught:
        home.make_private_dir(tmp_path)
    assert caught.value.field == "data"
    tmp_path.chmod(0o755)
    assert home.make_private_dir(tmp_path) == tmp_path
