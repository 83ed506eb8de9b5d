"""Other machines are spoken to with TLS, or not at all."""

from pathlib import Path

import msgspec
import pytest
import trustme

from leasehold.events.errors import InvalidInputError, UnavailableError
from leasehold.services import connection
from leasehold.services.natsserver import ClusterPeer, NatsServer, Tls
from tests.support.servers import TESTER, users_for


def certificates(folder: Path, ca: trustme.CA, *names: str) -> Tls:
    """A certificate for these names, on disk."""
    issued = ca.issue_cert(*names)
    tls = Tls(cert=folder / "cert.pem", key=folder / "key.pem", ca=folder / "ca.pem")
    issued.cert_chain_pems[0].write_to_path(tls.cert)
    issued.private_key_pem.write_to_path(tls.key)
    assert tls.ca is not None
    ca.cert_pem.write_to_path(tls.ca)
    return tls


@pytest.mark.parametrize("address", ["0.0.0.0", "10.1.2.3", "::", "example.org"])
def test_listening_for_others_needs_a_certificate(tmp_path: Path, address: str) -> None:
    """An address that others reach is refused without a certificate, before anything is written."""
    with pytest.raises(InvalidInputError, match="certificate") as refused:
        NatsServer(tmp_path / "data", users={}, address=address)
    assert refused.value.field == "listen"
    peer = ClusterPeer(name="c", server_name="s", port=1, routes=(), secret="x" * 8, address=address)
    with pytest.raises(InvalidInputError, match="certificate") as refused:
        NatsServer(tmp_path / "data", users={}, peer=peer)
    assert refused.value.field == "cluster_listen"
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("url", ["nats://10.1.2.3:4222", "nats://example.org:4222", "10.1.2.3:4222"])
async def test_others_are_not_spoken_to_in_the_clear(url: str) -> None:
    """An address of another machine is refused without TLS, before anything is sent; one among several is enough."""
    for urls in (url, ["nats://127.0.0.1:4222", url]):
        with pytest.raises(InvalidInputError) as refused:
            await connection.connect(urls, credential=TESTER, name="open")
        assert refused.value.field == "url"


async def test_with_a_certificate(tmp_path: Path) -> None:
    """A server with a certificate is believed by whoever has its CA, and by nobody else; in the clear nothing goes."""
    ca = trustme.CA()
    tls = certificates(tmp_path, ca, "127.0.0.1", "localhost")
    assert tls.ca is not None
    known = msgspec.structs.replace(TESTER, ca_pem=tls.ca.read_text())
    async with NatsServer(tmp_path / "data", users=users_for(TESTER), probe=known, tls=tls) as server:
        client = await connection.connect(server.url, credential=known, name="known")
        assert (await client.ask("$JS.API.INFO", timeout_s=5)).status == 0
        await connection.disconnect(client)
        other = msgspec.structs.replace(TESTER, ca_pem=trustme.CA().cert_pem.bytes().decode())
        for stranger in (other, TESTER):
            with pytest.raises(UnavailableError):
                await connection.connect(server.url, credential=stranger, name="stranger", timeout_s=1.5)
        wrong = msgspec.structs.replace(TESTER, ca_pem="no certificate")
        with pytest.raises(InvalidInputError, match="PEM"):
            await connection.connect(server.url, credential=wrong, name="wrong")


async def test_a_certificate_of_another_name_is_not_believed(tmp_path: Path) -> None:
    """A server that shows a certificate of the right CA for another name is not spoken to."""
    ca = trustme.CA()
    tls = certificates(tmp_path, ca, "elsewhere.example")
    assert tls.ca is not None
    known = msgspec.structs.replace(TESTER, ca_pem=tls.ca.read_text())
    async with NatsServer(tmp_path / "data", users=users_for(TESTER), tls=tls) as server:
        with pytest.raises(UnavailableError):
            await connection.connect(server.url, credential=known, name="careful", timeout_s=1.5)
