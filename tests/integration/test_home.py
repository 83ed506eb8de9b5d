"""Files with secrets in a directory that others may write to, too."""

import os
from pathlib import Path

import pytest

from leasehold.services import home


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
