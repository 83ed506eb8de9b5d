"""The command line within this process, which saves a second for each command."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from leasehold.services.cli import main


class Commands:
    """Commands for the `up` whose data lie in a directory."""

    def __init__(self, data: Path, patch: pytest.MonkeyPatch, shown: pytest.CaptureFixture[str]) -> None:
        patch.setenv("LEASEHOLD_DATA", str(data))
        patch.delenv("LEASEHOLD_CREDENTIALS", raising=False)
        self.archive = str(data / "archive")
        self._patch = patch
        self._shown = shown

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, standard output and standard error."""
        self._shown.readouterr()
        self._patch.setattr(sys, "argv", ["leasehold", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        shown = self._shown.readouterr()
        code = ended.value.code
        return code if isinstance(code, int) else 0, shown.out, shown.err

    def out(self, *arguments: str) -> str:
        """Standard output of a command that ends well."""
        code, out, err = self.run(*arguments)
        assert code == 0, f"{arguments}: {err}"
        return out

    def objects(self, *arguments: str) -> list[dict[str, Any]]:
        """As `out`, with `--json`."""
        return [json.loads(line) for line in self.out(*arguments, "--json").splitlines()]

    def names(self, *arguments: str) -> list[str]:
        """The names of the devices that a list shows."""
        return [row["name"] for row in self.objects("devices", *arguments)]
