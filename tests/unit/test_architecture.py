"""Imports point down the layers of docs/architecture.md only."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mcp_eventscope

PACKAGE = Path(mcp_eventscope.__file__).parent
MODULES = {
    ".".join(("mcp_eventscope", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

LAYERS = [
    (
        "errors",
        "sdk_versions",
        "cancellation",
        "process",
        "options",
        "stop_signals",
        "embedded_guardian",
        "telemetry.declarations",
        "telemetry.facts",
        "subscriptions.facts",
        "request_state.facts",
        "tasks.facts",
    ),
    (
        "telemetry.catalog.store",
        "telemetry.catalog.redis_stats",
        "telemetry.catalog.resumes",
        "telemetry.catalog.sessions",
        "telemetry.catalog.start",
        "telemetry.catalog.subscriptions",
        "telemetry.catalog.request_state",
        "telemetry.catalog.tasks",
    ),
    ("telemetry.catalog",),
    ("store",),
    ("redis",),
    ("telemetry",),
    ("instrumentation",),
    ("sessions", "frameworks", "subscriptions", "request_state", "tasks"),
    ("embedded", "settings", "health", "console"),
    ("scope",),
    ("app",),
    ("testing", "demo"),
    ("cli",),
    ("__main__",),
]
"""From the bottom up: a module imports from its own layer and those below it, never from one above."""

SHAPES = "mcp_eventscope.telemetry.declarations"
ONLY_IN = {
    # The instruments, a scrape as text, and the files of several processes; the demo reads a scrape.
    "prometheus_client": {
        "mcp_eventscope.demo.figures",
        "mcp_eventscope.telemetry.exposition.dead_processes",
        "mcp_eventscope.telemetry.metrics.prometheus",
        "mcp_eventscope.telemetry.exposition.rendering",
        "mcp_eventscope.telemetry.exposition.multiprocess",
    },
    # Spans, in whose trace they are, and the instruments.
    "opentelemetry": {
        "mcp_eventscope.telemetry.tracing",
        "mcp_eventscope.telemetry.propagation",
        "mcp_eventscope.telemetry.metrics.otel",
    },
    # The application imports it, or no module does: it takes as long as a tenth of the SDK.
    "structlog": set(),
    # Only `http_app` needs it.
    "pydantic_settings": {"mcp_eventscope.settings"},
}


BUILDER = {f"dashboards.{path.stem}": path for path in sorted((Path(__file__).parents[2] / "dashboards").glob("*.py"))}
"""The dashboard builder is no part of the package: the wheel contains its output only."""
del BUILDER["dashboards.pictures"]  # It renders the output.


def imports(module: str, *, nested: bool = True) -> Iterator[str]:
    """Every module that a module names in an import, wherever it stands; without `nested`, at its top only."""
    tree = ast.parse((MODULES | BUILDER)[module].read_text("utf-8"))
    for node in ast.walk(tree) if nested else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            yield from (
                name if (name := f"{node.module}.{alias.name}") in MODULES else str(node.module) for alias in node.names
            )


def layer(module: str) -> int:
    """The layer of a module, by the longest name that fits."""
    name = module.removeprefix("mcp_eventscope").removeprefix(".")
    fitting = [
        (len(part), height)
        for height, parts in enumerate(LAYERS)
        for part in parts
        if name == part or name.startswith(f"{part}.")
    ]
    assert fitting, f"{module} is in no layer: add it to LAYERS"
    return max(fitting)[1]


@pytest.mark.parametrize("module", [name for name in MODULES if name != "mcp_eventscope"])
def test_module_imports_only_its_layer_and_lower_ones(module: str) -> None:
    """A module knows only its own layer and lower ones."""
    above = [name for name in imports(module) if name in MODULES and layer(name) > layer(module)]
    assert above == []


def test_imports_have_no_cycles() -> None:
    """No two modules depend on each other, directly or indirectly."""
    graph = {name: {other for other in imports(name) if other in MODULES} for name in MODULES}
    while leaves := {name for name, needs in graph.items() if not needs}:
        graph = {name: needs - leaves for name, needs in graph.items() if name not in leaves}
    assert graph == {}


@pytest.mark.parametrize(("library", "homes"), ONLY_IN.items())
def test_library_is_imported_by_its_modules_only(library: str, homes: set[str]) -> None:
    """Each library of telemetry and of settings has its own modules."""
    users = {name for name in MODULES if any(used.split(".")[0] == library for used in imports(name))}
    assert users == homes


def test_redis_imports_no_telemetry() -> None:
    """The store returns facts and reports nothing itself."""
    below = [name for name in MODULES if name.startswith("mcp_eventscope.redis")]
    assert below
    assert [used for name in below for used in imports(name) if "telemetry" in used] == []


@pytest.mark.parametrize("part", ["subscriptions", "request_state", "tasks"])
def test_part_imports_telemetry_in_its_decorator_only(part: str) -> None:
    """The logic returns facts; `instrumented` records them."""
    logic = [name for name in MODULES if name.startswith(f"mcp_eventscope.{part}") and "instrumented" not in name]
    assert logic
    assert [used for name in logic for used in imports(name) if "telemetry" in used] == []


def test_catalog_imports_declarations_only() -> None:
    """The catalog is data and the types of that data."""
    shapes = SHAPES
    parts = {name for name in MODULES if name.startswith("mcp_eventscope.telemetry.catalog.")}
    assert len(parts) > 1
    for module, below in {
        "mcp_eventscope.telemetry.catalog": parts,
        **{part: {shapes} for part in parts},
    }.items():
        assert {used for used in imports(module) if used.startswith("mcp_eventscope")} == below
    assert [used for used in imports(shapes) if used.startswith("mcp_eventscope")] == []


def test_sessions_import_no_instruments() -> None:
    """Sessions record facts; telemetry turns them into metrics and log events."""
    above = [name for name in MODULES if name.startswith("mcp_eventscope.sessions")]
    assert above
    assert [used for name in above for used in imports(name) if used.startswith("prometheus_client")] == []
    assert [used for name in above for used in imports(name) if used.endswith("telemetry.metrics.prometheus")] == []


def test_command_line_starts_without_the_sdk_and_redis() -> None:
    """The declarations of the commands import their implementations only when these run."""
    starting = ("cli.main", "cli.output", "cli.bundled")
    used = {name for module in starting for name in imports(f"mcp_eventscope.{module}", nested=False)}
    assert {name for name in used if name.startswith("mcp_eventscope")} == {
        "mcp_eventscope.errors",
        "mcp_eventscope.cli.bundled",
        "mcp_eventscope.cli.output",
        "mcp_eventscope.options",
        "mcp_eventscope.sdk_versions",
    }
    assert {name.split(".")[0] for name in used} - {"mcp_eventscope", "click"} <= sys.stdlib_module_names


def test_dashboard_builder_imports_the_catalog_only() -> None:
    """Dashboards and rules depend on declarations and the standard library."""
    used = {name for module in BUILDER for name in imports(module)}
    ours = {name for name in used if name.startswith("mcp_eventscope")}
    assert "mcp_eventscope.telemetry.catalog" in ours
    assert [name for name in ours if not name.startswith(("mcp_eventscope.telemetry.catalog", SHAPES))] == []
    libraries = {name.split(".")[0] for name in used} - {"mcp_eventscope", "dashboards"}
    assert libraries <= sys.stdlib_module_names


@pytest.mark.parametrize("module", [*MODULES, *BUILDER])
def test_module_has_a_docstring(module: str) -> None:
    """Every module states its subject."""
    assert ast.get_docstring(ast.parse((MODULES | BUILDER)[module].read_text("utf-8")))


def test_imported_package_is_the_installed_wheel() -> None:
    """The tests import the installed package, not the source tree."""
    assert "site-packages" in PACKAGE.parts
    assert (PACKAGE / "py.typed").is_file()
    assert {path.name for path in (PACKAGE / "console" / "static").iterdir()} == {
        "console.css",
        "console.html",
        "console.js",
        "icon.svg",
    }
    assert {path.name for path in (PACKAGE / "redis" / "lua").iterdir()} == {
        "account.lua",
        "answer.lua",
        "changes_append.lua",
        "changes_read.lua",
        "claim.lua",
        "commit.lua",
        "end.lua",
        "evict.lua",
        "forget_runs.lua",
        "keep_inbox.lua",
        "peek_runs.lua",
        "read_run.lua",
        "receive.lua",
        "record.lua",
        "release.lua",
        "root_append.lua",
        "root_peek.lua",
        "root_read.lua",
        "self_test.lua",
        "serving.lua",
        "standalone.lua",
        "standalone_sent.lua",
        "state_claim.lua",
        "state_keys.lua",
        "state_restore.lua",
        "state_settle.lua",
        "survey.lua",
        "task_put.lua",
        "task_read.lua",
        "task_signal.lua",
        "task_sync.lua",
        "task_uncollected.lua",
        "touch.lua",
    }
