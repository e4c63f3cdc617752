"""URLs of Redis whose user names, passwords and paths have characters with a meaning, in each place that takes one."""

import json
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from urllib.parse import quote

import anyio
import pytest
import redis
from mcp.server import MCPServer
from prometheus_client import CollectorRegistry

from mcp_eventscope import EventScope, RedisEventStore, StoreRejectedError, http_app
from mcp_eventscope.cli.main import main
from mcp_eventscope.cli.output import Exit
from mcp_eventscope.redis.client import client_for
from mcp_eventscope.settings import URL_VARIABLE, load
from support.logs import Recorder
from support.servers import HOST, cluster_of_one, short_directory
from support.valkeys import OwnValkey, own_valkey
from support.waiting import CEILING, until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

ODD = ("us@er:pass/word?with#all%2F[of]&them=+;", "sp ace \"'\\ $`<>", "pässwörd-€-漢-\U0001f9ea")
"""As user names, as passwords, and as names of files."""
DATABASE = 3
WRONG = "wr@ng/pass?word#%41"


@pytest.fixture(scope="module")
def server() -> Iterator[OwnValkey]:
    """A Valkey with a user of each name, whose password is the name, and no others."""
    with own_valkey() as own:
        with own.client() as admin:
            for text in ODD:
                name = text.replace(" ", "")  # Valkey allows no spaces in names.
                admin.execute_command("ACL", "SETUSER", name, "reset", "on", f">{text}", "~*", "&*", "+@all")
        yield own


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """Where sockets have odd names."""
    with short_directory() as path:
        yield path


def encoded(text: str) -> str:
    """A text as a part of a URL."""
    return quote(text, safe="")


def login(text: str, password: str | None = None) -> str:
    """The user of a text, with its password or another one."""
    return f"{encoded(text.replace(' ', ''))}:{encoded(password or text)}"


@pytest.fixture(params=["tcp", "unix"])
def where(request: pytest.FixtureRequest, server: OwnValkey, directory: Path) -> tuple[str, str]:
    """The beginning of a URL, and its end with a database."""
    patience = f"socket_timeout={CEILING}&socket_connect_timeout={CEILING}"
    if request.param == "tcp":
        return "redis://", f"@{HOST}:{server.port}/{DATABASE}?{patience}"
    path = directory / f"{ODD[0].replace('/', '')} {ODD[2]}"
    if not path.exists():
        path.symlink_to(server.socket)
    return "unix://", f"@{encoded(str(path)).replace('%2F', '/')}?db={DATABASE}&{patience}"


@pytest.mark.parametrize("text", ODD)
async def test_odd_characters_work_wherever_a_url_is_given(  # noqa: PLR0913, PLR0917 - fixtures
    server: OwnValkey,
    where: tuple[str, str],
    text: str,
    key_prefix: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A client, a scope, the environment, and the command line, all with the database of the URL."""
    url = f"{where[0]}{login(text)}{where[1]}"
    async with aclosing(client_for(url)) as client:
        await RedisEventStore(client, key_prefix=key_prefix, ttl=60).append("1", None)
    with server.client() as admin:
        admin.select(DATABASE)
        assert admin.exists(f"{key_prefix}counter")
    scope = EventScope("orders", redis_url=url, key_prefix=key_prefix, registry=CollectorRegistry())
    async with scope.connected():
        await scope.event_store.for_session("s").probe()
    monkeypatch.setenv(URL_VARIABLE, url)
    app = http_app(MCPServer("orders"), key_prefix=key_prefix, registry=CollectorRegistry())
    async with app.router.lifespan_context(app):
        pass
    assert await anyio.to_thread.run_sync(main, ["sessions", "list"]) == Exit.OK
    monkeypatch.delenv(URL_VARIABLE)
    assert await anyio.to_thread.run_sync(main, ["sessions", "list", "--redis-url", url]) == Exit.OK
    assert await anyio.to_thread.run_sync(main, ["doctor", url, "--json"]) in {Exit.OK, Exit.FAILED}
    *_, found = capsys.readouterr().out.splitlines()
    assert json.loads(found)["servers"]
    for each in (text, encoded(text)):
        assert each not in found


async def test_odd_password_of_a_cluster_works(key_prefix: str) -> None:
    """In the URL of several nodes."""
    with cluster_of_one() as port, redis.Redis(port=port) as admin:
        for number, text in enumerate(ODD):
            admin.execute_command("ACL", "SETUSER", f"u{number}", "reset", "on", f">{text}", "~*", "&*", "+@all")
            url = f"redis+cluster://u{number}:{encoded(text)}@{HOST}:{port},{HOST}:{port}?socket_timeout={CEILING}"
            async with aclosing(client_for(url)) as client:
                await RedisEventStore(client, key_prefix=f"{{{key_prefix}}}", ttl=60).append("1", None)


async def test_wrong_password_is_in_no_message(
    where: tuple[str, str], key_prefix: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of errors, logs, and the command line, neither as it is nor percent-encoded."""
    url = f"{where[0]}{login(ODD[0], WRONG)}{where[1]}"
    seen = [repr(load({"redis_url": url}))]
    async with aclosing(client_for(url)) as client:
        with pytest.raises(StoreRejectedError, match="refused the user name or password") as caught:
            await RedisEventStore(client, key_prefix=key_prefix, ttl=60).probe()
        seen += [str(caught.value), repr(client), str(caught.value.__cause__)]
    log = Recorder()
    scope = EventScope("orders", redis_url=url, key_prefix=key_prefix, registry=CollectorRegistry(), logger=log)
    async with scope.connected():
        await until(lambda: log.named("event_store.degraded"))
    seen += [repr(log.entries), repr(scope), repr(scope.backend)]
    monkeypatch.setenv(URL_VARIABLE, url)
    for arguments in (["workers"], ["workers", "--json"], ["doctor", url], ["sessions", "list", "--redis-url", url]):
        assert await anyio.to_thread.run_sync(main, arguments) == Exit.UNREACHABLE
    printed = capsys.readouterr()
    seen += [printed.out, printed.err]
    for text in seen:
        assert WRONG not in text
        assert encoded(WRONG) not in text
