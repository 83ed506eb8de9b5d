"""A bus on which nobody answers questions about the past; a command that is ended by hand."""

from pathlib import Path

import click
import pytest

from leasehold.events.errors import UnavailableError
from leasehold.services.cli.common import EXIT_INTERRUPTED, asynchronous
from leasehold.services.client import Client
from leasehold.services.credentials import new_credential, write_credential
from leasehold.services.natsserver import NatsServer
from leasehold.services.past import Past
from tests.support.servers import SUBJECTS, TESTER, users_for


async def test_that_no_archive_listens_is_said(tmp_path: Path) -> None:
    """Where no archive runs, that is what is missing; it is not taken for a past without owners."""
    auditor = new_credential("auditor", "eve", SUBJECTS.cluster)
    write_credential(tmp_path / "eve.json", auditor)
    world = f"users: [\n  {{nkey: {auditor.user.public_key}}}\n]\n"
    users = {**users_for(TESTER), "world": world}
    async with (
        NatsServer(tmp_path / "data", users=users, probe=TESTER) as server,
        Client(credentials=tmp_path / "eve.json", url=server.url, patience_s=0.3) as client,
    ):
        with pytest.raises(UnavailableError, match="no archive listens"):
            await Past(client).owners().all()
        with pytest.raises(UnavailableError, match="no query service listens"):
            await client.devices()


def test_ctrl_c_ends_a_command_without_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    """Following ends with Ctrl-C: exit code 130, and nothing is said of it."""

    async def follows() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        click.command()(asynchronous(follows)).main([])
    assert ended.value.code == EXIT_INTERRUPTED
    assert capfd.readouterr() == ("", "")
