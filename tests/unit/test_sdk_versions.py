"""The supported versions of the SDK: at import, in the package's metadata, and in the imports."""

import ast
import os
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import mcp_eventscope
from mcp_eventscope import IncompatibleSDKError, sdk_versions

PACKAGE = Path(mcp_eventscope.__file__).parent
PYPROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))
NEWEST = ("2.2.0", "2.3.0", "2.3.1", "2.10.0")
SESSIONS = (*NEWEST, "1.30.0", "1.30.1", "1.31.0")
STORES = (*SESSIONS, "1.23.0", "1.23.3", "1.29.1")
REFUSED = ("0.9.1", "1.2.0", "1.22.0", "2.0.0", "2.0.1", "2.1.1", "3.0.0", "10.0.0")
PARTS = {
    sdk_versions.STORES: (STORES, "2.2 or a later 2.x, or 1.23 or a later 1.x"),
    sdk_versions.SESSIONS: (SESSIONS, "2.2 or a later 2.x, or 1.30 or a later 1.x"),
    sdk_versions.TESTING: (NEWEST, "2.2 or a later 2.x"),
}


@pytest.mark.parametrize("first", PARTS, ids=["stores", "sessions", "testing"])
@pytest.mark.parametrize("installed", [*STORES, *REFUSED])
def test_require_sdk_accepts_the_versions_of_the_part(
    first: tuple[tuple[int, int], ...], installed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the supported versions, the installed one, a command, and the parts that work."""
    supported, text = PARTS[first]
    monkeypatch.setattr(sdk_versions, "version", lambda _: installed)
    if installed in supported:
        sdk_versions.require_sdk("this", first)
        return
    with pytest.raises(IncompatibleSDKError) as caught:
        sdk_versions.require_sdk("this", first)
    instead = ", or use RedisEventStore and InstrumentedEventStore, which support this version"
    assert str(caught.value) == (
        f"mcp must be {text} for this, got {installed}; run pip install 'mcp>=2.2,<3'"
        f"{instead if installed in STORES else ''}"
    )


@pytest.mark.parametrize("name", ["http_app", "ResumableSessionManager"])
def test_sessions_on_old_1_x_are_refused_by_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names that need the session manager are refused when they are imported."""
    monkeypatch.setattr(sdk_versions, "version", lambda _: "1.29.1")
    monkeypatch.delitem(vars(mcp_eventscope), name, raising=False)
    with pytest.raises(IncompatibleSDKError, match=rf"1\.30 or a later 1\.x for {name}, got 1\.29\.1"):
        getattr(mcp_eventscope, name)


@pytest.mark.parametrize(
    "name",
    [
        "EndSubscriptionsOnStop",
        "InstrumentedRequestState",
        "InstrumentedSubscriptionBus",
        "RedisRequestState",
        "RedisSubscriptionBus",
    ],
)
def test_parts_of_revision_2026_on_1_x_are_refused_by_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """These SDKs do not speak it; the package itself can be imported."""
    monkeypatch.setattr(sdk_versions, "version", lambda _: "1.30.0")
    monkeypatch.delitem(vars(mcp_eventscope), name, raising=False)
    with pytest.raises(IncompatibleSDKError, match=rf"2\.2 or a later 2\.x for {name}, got 1\.30\.0"):
        getattr(mcp_eventscope, name)


def test_sdk_without_metadata_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen application may contain the SDK without its metadata."""

    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(sdk_versions, "version", version)
    sdk_versions.require_sdk("http_app", sdk_versions.SESSIONS)


@pytest.mark.parametrize(
    ("version", "code", "refused"),
    [
        ("2.1.1", "from mcp_eventscope import RedisEventStore", True),
        ("2.1.1", "import mcp_eventscope.instrumentation", True),
        ("2.1.1", "import mcp_eventscope.testing", True),
        ("2.1.1", "from mcp_eventscope import http_app", True),
        ("1.30.0", "import mcp_eventscope.testing", True),
        ("2.1.1", "from mcp_eventscope import StoreError; import mcp_eventscope.cli.main", False),
        ("1.30.0", "from mcp_eventscope import InstrumentedEventStore, metrics_app", False),
    ],
)
def test_import_on_unsupported_version_raises_first(version: str, code: str, refused: bool, tmp_path: Path) -> None:  # noqa: FBT001 - a case
    """The check precedes any import that would fail for another reason. The command line needs no SDK."""
    metadata = tmp_path / f"mcp-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: mcp\nVersion: {version}\n", "utf-8")
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    last = run.stderr.strip().rpartition("\n")[2]
    assert (run.returncode, last.startswith("mcp_eventscope.errors.IncompatibleSDKError: mcp must be ")) == (
        (1, True) if refused else (0, False)
    ), run.stderr


def test_metadata_allows_the_versions_that_import_accepts() -> None:
    """A package installer chooses no version that the import refuses, and rejects none that it accepts."""
    (sdk,) = [found for text in PYPROJECT["project"]["dependencies"] if (found := Requirement(text)).name == "mcp"]
    assert [version for version in (*STORES, *REFUSED) if sdk.specifier.contains(version)] == [*STORES]


def test_store_and_decorator_import_the_sdk_in_one_module() -> None:
    """The difference between the major versions of the SDK stays in one module, which imports nothing private."""
    below = ["instrumentation.py", *(f"{part}/**/*.py" for part in ("store", "redis", "telemetry"))]
    users: dict[str, set[str]] = {}
    for path in [path for pattern in below for path in PACKAGE.glob(pattern)]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            used = {name for name in names if name.split(".")[0] in {"mcp", "mcp_types"}}
            users.setdefault(str(path.relative_to(PACKAGE)), set()).update(used)
    assert {path: used for path, used in users.items() if used} == {
        "store/messages.py": {"mcp.server.streamable_http", "mcp.types"}
    }
