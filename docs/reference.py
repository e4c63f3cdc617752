"""The generated parts of the reference: the public API, the options, and the errors."""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path

import griffe
from griffe import (
    Class,
    DocstringSectionParameters,
    DocstringSectionRaises,
    DocstringSectionReturns,
    DocstringSectionText,
    Function,
)

import mcp_eventscope
from mcp_eventscope import errors, settings

PACKAGE = Path(mcp_eventscope.__file__).parent

API: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "Serve": {
        "http_app": (),
        "EventScope": ("server_options", "tasks", "subscriptions", "request_state", "install", "running"),
        "ResumableSessionManager": ("run", "drain"),
        "metrics_app": (),
    },
    "Event stores": {
        "RedisEventStore": ("backend", "for_session", "flush"),
        "InstrumentedEventStore": ("poll_redis_stats",),
    },
    "Tasks": {
        "TasksExtension": ("running",),
        "TasksClient": ("poll", "cancel"),
        "RedisTaskStore": (),
        "InMemoryTaskStore": (),
        "InstrumentedTaskStore": (),
        "TaskStore": (),
    },
    "Subscriptions": {
        "RedisSubscriptionBus": ("running",),
        "InstrumentedSubscriptionBus": ("running",),
        "EndSubscriptionsOnStop": (),
    },
    "Request state": {
        "RedisRequestState": (),
        "InstrumentedRequestState": ("install", "running"),
    },
}
"""The public names but the exceptions, in the order of the page, each with the methods that an application calls."""

_EXCEPTIONS = ("EventscopeError", *(name for name in mcp_eventscope.__all__ if hasattr(errors, name)))
_INTERNAL = {"the connection was closed", "not an object", "not a JSON-RPC message", "the task was cancelled"}
"""Messages that another part of the package handles."""


def api() -> Iterator[str]:
    """The lines of the page of the public API."""
    for section, names in API.items():
        yield from (f"## {section}", "")
        for name, methods in names.items():
            found = _find(name)
            yield from _described(name, found)
            for method in methods:
                member = found.members[method]
                assert isinstance(member, Function | griffe.Attribute)  # noqa: S101 - the table above
                yield from _described(f"{name}.{method}", member, level=4)


def summary() -> str:
    """What the package is, in one sentence."""
    return (mcp_eventscope.__doc__ or "").splitlines()[0]


@cache
def _package() -> "griffe.Object | griffe.Alias":
    # By name: a path below the current directory would be taken for a path of modules.
    return griffe.load("mcp_eventscope", search_paths=[PACKAGE.parent], resolve_aliases=True)


def _find(name: str) -> Class | Function:
    target = _package()[name]
    found = target.final_target if target.is_alias else target
    assert isinstance(found, Class | Function)  # noqa: S101 - a public name
    return found


def _described(name: str, found: "Class | Function | griffe.Attribute", level: int = 3) -> Iterator[str]:
    """A heading, the signature and the docstring of a public name."""
    yield from (f"{'#' * level} `{name}`", "")
    function = found.members.get("__init__") if isinstance(found, Class) else found
    if isinstance(function, Function) and function.parent and not (isinstance(found, Class) and _is_protocol(found)):
        yield from ("```python", _signature(name, function), "```", "")
    if found.docstring is None:
        return
    for section in found.docstring.parse("google", warnings=False):
        match section:
            case DocstringSectionText(value=text):
                yield from (_markdown(text), "")
            case DocstringSectionParameters(value=parameters):
                yield from (f"* `{each.name}`: {_line(each.description)}" for each in parameters)
                yield ""
            case DocstringSectionReturns(value=returned):
                yield from ("Returns: " + " ".join(_line(each.description) for each in returned), "")
            case DocstringSectionRaises(value=raised):
                yield from (f"* raises `{each.annotation}`: {_line(each.description)}" for each in raised)
                yield ""
            case griffe.DocstringSectionExamples() | griffe.DocstringSectionAdmonition():
                yield from (_markdown(str(section.value)), "")


def _is_protocol(found: Class) -> bool:
    return any("Protocol" in str(base) for base in found.bases)


def _signature(name: str, function: Function) -> str:
    """The signature on one line, or with a parameter on each."""
    parts: list[str] = []
    keywords = False
    for each in function.parameters:
        if each.name == "self":
            continue
        if each.kind is griffe.ParameterKind.keyword_only and not keywords:
            keywords = True
            parts.append("*")
        annotation = f": {each.annotation}".replace("'", "").replace('"', "") if each.annotation else ""
        stars = {griffe.ParameterKind.var_keyword: "**", griffe.ParameterKind.var_positional: "*"}.get(each.kind, "")
        keywords = keywords or stars == "*"
        plain = f" = {each.default}" if annotation else f"={each.default}"
        default = plain if each.default is not None and not stars else ""
        parts.append(f"{stars}{each.name}{annotation}{default}")
    returned = f" -> {function.returns}" if function.returns and function.name != "__init__" else ""
    prefix = "async def " if "async" in function.labels else "def "
    head = name if function.name == "__init__" else f"{prefix}{name.rpartition('.')[2]}"
    line = f"{head}({', '.join(parts)}){returned}"
    if len(line) <= 88:
        return line
    return "\n".join([f"{head}(", *(f"    {part}," for part in parts), f"){returned}"])


def _markdown(text: str) -> str:
    return text.strip()


def _line(text: str) -> str:
    return " ".join(text.split())


def descriptions(name: str) -> dict[str, str]:
    """The descriptions of the parameters of a public name. "As in `X`" is replaced by the description there."""
    found = _find(name)
    result: dict[str, str] = {}
    sections = found.docstring.parse("google", warnings=False) if found.docstring else []
    for section in sections:
        if isinstance(section, DocstringSectionParameters):
            result |= {each.name: _line(each.description) for each in section.value}
    for option, text in result.items():
        if match := re.match(r"As in `(\w+)`[^.;]*(?:; (.+))?", text):
            there = descriptions(match[1])[option]
            result[option] = f"{there} {match[2][0].upper()}{match[2][1:]}" if match[2] else there
    return result


def options() -> Iterator[str]:
    """The rows of the options of `http_app`: name, default, meaning. A † marks those of `EventScope`."""
    meanings = descriptions("http_app")
    scope = descriptions("EventScope")
    for name, parameter in inspect.signature(mcp_eventscope.http_app).parameters.items():
        if name != "mcp" and parameter.kind is not parameter.VAR_KEYWORD:
            yield f"| `{name}`{' †' if name in scope else ''} | {_default(name)} | {meanings[name]} |"


def variables() -> Iterator[str]:
    """The rows of the environment variables: name, default, values."""
    for name in settings.Settings.model_fields:
        number = settings.NUMBERS.get(name)
        if name in settings.FLAGS:
            values = "`true` or `false`"
        elif number is None:
            values = settings.TEXTS[name][1]
        else:
            values = number.expected() + (f", or `{settings.NEVER}`: {number.none}" if number.none else "")
        yield f"| `{settings.variable(name)}` | {_default(name)} | {values} |"
    for name, values in settings.REQUEST_STATE_VARIABLES.items():
        yield f"| `{name}` | | {values} |"


def _default(option: str) -> str:
    field = settings.Settings.model_fields.get(option)
    default = field.default if field else None
    if default is None:
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    return (
        f"{default:g}" if isinstance(default, float) else f"`{default}`" if isinstance(default, str) else str(default)
    )


def exceptions() -> Iterator[str]:
    """The rows of the public exceptions: name, base, meaning."""
    for name in sorted({*_EXCEPTIONS}):
        exception = getattr(errors, name)
        yield f"| `{name}` | `{exception.__base__.__name__}` | {_line(exception.__doc__ or '')} |"


def messages() -> Iterator[str]:
    """The rows of the messages that the package raises: message, exception, fix."""
    found = {
        (text, exception)
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).parts[0] not in {"testing", "cli", "demo"}
        for text, exception in _raised(path)
    }
    for text, exception in sorted(found, key=lambda each: (each[0].lower().lstrip("`"), each)):
        message, _, fix = text.partition("; ")
        yield f"| {_escaped(message)} | `{exception}` | {_escaped(fix)} |"


def _raised(path: Path) -> Iterator[tuple[str, str]]:
    """The messages that a module assigns to `msg` and raises in the next statement."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        for body in (getattr(node, "body", None), getattr(node, "orelse", None)):
            for first, second in pairwise(body if isinstance(body, list) else []):
                if not (isinstance(first, ast.Assign) and isinstance(second, ast.Raise)):
                    continue
                if ast.unparse(first.targets[0]) == "msg" and isinstance(second.exc, ast.Call):
                    text, exception = _template(first.value, _names_in(path)), ast.unparse(second.exc.func)
                    if text not in _INTERNAL and exception != "AttributeError":
                        yield text, exception


def _names_in(path: Path) -> Mapping[str, object]:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return vars(importlib.import_module(".".join(["mcp_eventscope", *parts]).removesuffix(".__init__")))


def _template(value: ast.expr, names: Mapping[str, object]) -> str:
    """A message with its constants, `…` in place of its values, and OPTION in place of the name of an option."""
    if isinstance(value, ast.Constant):
        return str(value.value)
    if not isinstance(value, ast.JoinedStr):
        return ""
    return "".join(
        _shown(part.value, names) if isinstance(part, ast.FormattedValue) else _template(part, names)
        for part in value.values
    )


def _shown(value: ast.expr, names: Mapping[str, object]) -> str:
    name = ast.unparse(value)
    constant = names.get(name)
    if isinstance(constant, str | int | float):
        return str(constant)
    return "OPTION" if name in {"option", "name"} else "…"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
