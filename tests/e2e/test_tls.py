"""Redis with TLS: by URL, by a client with options, on a cluster, behind Sentinel; certificates that do not fit."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import aclosing
from typing import Any

import anyio
import pytest
import redis
from redis import asyncio as aioredis
from redis.asyncio.sentinel import Sentinel

from mcp_eventscope import RedisEventStore, StoreUnavailableError
from mcp_eventscope.cli.main import main
from mcp_eventscope.cli.output import Exit
from mcp_eventscope.redis.client import AnyRedis, client_for
from support.binaries import program
from support.scope_pair import scope_pair, scope_story
from support.servers import HOST, free_port, short_directory
from support.tls import Certificates, certificates
from support.valkeys import OwnValkey, own_valkey
from support.waiting import CEILING, eventually

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

PASSWORD = "hunter2"
PATIENCE = f"socket_timeout={CEILING}&socket_connect_timeout={CEILING}"
MASTER = "mymaster"


@pytest.fixture(scope="module")
def files() -> Iterator[Certificates]:
    """The files of the servers and their clients."""
    with short_directory() as directory:
        yield certificates(directory)


@pytest.fixture(scope="module")
def foreign() -> Iterator[Certificates]:
    """The files of another authority."""
    with short_directory() as directory:
        yield certificates(directory)


@pytest.fixture(scope="module")
def server(files: Certificates) -> Iterator[tuple[OwnValkey, int]]:
    """A server, and its port for TLS; the embedded Valkey has no TLS. Its replication speaks TLS, too."""
    binary, port = program("redis-server", "redis-server"), free_port()
    with own_valkey(
        binary=binary, tls_port=port, tls_auth_clients="optional", tls_replication="yes", **files.settings
    ) as own:
        allow(own)
        yield own, port


def allow(server: OwnValkey) -> None:
    """Let clients with a password in, and no others."""
    with server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "mcp", "on", f">{PASSWORD}", "~*", "&*", "+@all")


def query(files: Certificates) -> str:
    """The options of a URL that name the authority."""
    return f"ssl_ca_certs={files.ca}"


@pytest.fixture(scope="module")
def sentinel_port(server: tuple[OwnValkey, int], files: Certificates) -> Iterator[int]:
    """The port for TLS of a Sentinel that watches the server."""
    _, master_port = server
    port = free_port()
    with short_directory() as directory:
        settings = {
            "port": 0,
            "tls-port": port,
            "dir": directory,
            "tls-replication": "yes",
            "tls-auth-clients": "optional",
            **{name.replace("_", "-"): value for name, value in files.settings.items()},
            "sentinel monitor": f"{MASTER} {HOST} {master_port} 1",
            "sentinel auth-user": f"{MASTER} mcp",
            "sentinel auth-pass": f"{MASTER} {PASSWORD}",
        }
        (directory / "sentinel.conf").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        process = subprocess.Popen(
            [program("redis-sentinel", "redis-sentinel"), str(directory / "sentinel.conf")], stdout=subprocess.DEVNULL
        )
        try:
            eventually(lambda: _knows_master(port, files))
            yield port
        finally:
            process.kill()
            process.wait(CEILING)


def _knows_master(port: int, files: Certificates) -> bool:
    client: Any = redis.Redis(host=HOST, port=port, ssl=True, ssl_ca_certs=str(files.ca))
    try:
        return b"flags" in client.execute_command("SENTINEL", "MASTER", MASTER, NEVER_DECODE=True)
    except redis.exceptions.ConnectionError:
        return False
    finally:
        client.close()


@pytest.fixture(scope="module")
def cluster_port(files: Certificates) -> Iterator[int]:
    """The port for TLS of a cluster of one node."""
    binary, port = program("redis-server", "redis-server"), free_port()
    with own_valkey(
        binary=binary,
        tls_port=port,
        tls_cluster="yes",
        tls_auth_clients="optional",
        cluster_enabled="yes",
        **files.settings,
    ) as node:
        allow(node)
        with node.client() as admin:
            admin.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            eventually(lambda: b"cluster_state:ok" in admin.execute_command("CLUSTER", "INFO", NEVER_DECODE=True))
        yield port


async def test_every_part_works_over_tls_by_url(
    server: tuple[OwnValkey, int], files: Certificates, key_prefix: str
) -> None:
    """With the certificate of a client, too."""
    own, port = server
    certified = f"ssl_certfile={files.client}&ssl_keyfile={files.client}"
    url = f"rediss://mcp:{PASSWORD}@{HOST}:{port}/1?{query(files)}&{certified}&{PATIENCE}"
    async with scope_pair(url, key_prefix) as (a, b):
        await scope_story(a, b)
        with own.client() as admin:
            ports = {client["laddr"] for client in admin.client_list() if client["user"] == "mcp"}
    assert ports == {f"{HOST}:{port}"}


async def test_every_part_works_over_tls_behind_sentinel(
    sentinel_port: int, files: Certificates, key_prefix: str
) -> None:
    """Both the Sentinel and its master speak TLS, to clients that the application configures."""
    patient = {"socket_timeout": CEILING, "socket_connect_timeout": CEILING}
    tls: dict[str, Any] = {"ssl": True, "ssl_ca_certs": str(files.ca), **patient}

    def make() -> AnyRedis:
        sentinel = Sentinel([(HOST, sentinel_port)], sentinel_kwargs=tls)  # type: ignore[no-untyped-call]
        client: aioredis.Redis = sentinel.master_for(MASTER, username="mcp", password=PASSWORD, **tls)
        return client

    async with scope_pair(make, key_prefix) as (a, b):
        await scope_story(a, b)


async def test_every_part_works_over_tls_on_a_cluster(cluster_port: int, files: Certificates, key_prefix: str) -> None:
    """The nodes name their ports for TLS."""
    url = f"rediss+cluster://mcp:{PASSWORD}@{HOST}:{cluster_port}?{query(files)}&{PATIENCE}"
    async with scope_pair(url, key_prefix) as (a, b):
        await scope_story(a, b)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (query, "certificate verify failed"),
        (lambda _: "", "certificate verify failed"),
        (lambda _: "ssl_ca_certs=/nonexistent/ca.pem", "No such file"),
        # The server closes the connection after its alert, which the client then may not receive.
        (
            lambda other: f"ssl_cert_reqs=none&ssl_certfile={other.client}&ssl_keyfile={other.client}",
            "UNKNOWN_CA|Connection reset by peer",
        ),
    ],
    ids=["authority of another", "authorities of the system", "file that is not there", "certificate of another"],
)
async def test_certificate_that_does_not_fit_is_an_error_with_the_address(
    server: tuple[OwnValkey, int], foreign: Certificates, options: Callable[[Certificates], str], reason: str
) -> None:
    """The reason is named, and no secret."""
    await refused(f"rediss://mcp:{PASSWORD}@{HOST}:{server[1]}?{options(foreign)}", reason)


async def test_foreign_certificate_of_a_cluster_is_an_error_with_the_address(
    cluster_port: int, foreign: Certificates
) -> None:
    """Before its client knows any node, the address is that of the URL."""
    await refused(
        f"rediss+cluster://mcp:{PASSWORD}@{HOST}:{cluster_port}?{query(foreign)}", "certificate verify failed"
    )


async def refused(url: str, reason: str) -> None:
    """Check the error of a store, and that of the command line."""
    async with aclosing(client_for(url)) as client:
        with pytest.raises(StoreUnavailableError, match=reason) as caught:
            await RedisEventStore(client, key_prefix="{mcp}:", ttl=60).probe()
    assert f"Redis at {url.partition('@')[2].partition('?')[0]}: " in str(caught.value)
    assert PASSWORD not in str(caught.value)
    assert await anyio.to_thread.run_sync(main, ["workers", "--redis-url", url]) == Exit.UNREACHABLE
