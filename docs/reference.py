"""The generated parts of the reference: the public API, the options, and the errors."""

import ast
import inspect
import re
from collections.abc import Iterator, Mapping
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
_INTERNAL = {"the connection was closed", "not an object", "not a JSON-RPC message"}
"""Messages that another part of the package handles."""

_package = griffe.load(PACKAGE, resolve_aliases=True)


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


def _find(name: str) -> Class | Function:
    target = _package[name]
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
    """The rows of the options of `http_app`: name, variable, default, values, meaning."""
    meanings = descriptions("http_app")
    scope = descriptions("EventScope")
    for name, parameter in inspect.signature(mcp_eventscope.http_app).parameters.items():
        if name == "mcp" or parameter.kind is parameter.VAR_KEYWORD:
            continue
        field = settings.Settings.model_fields.get(name)
        variable = f"`{settings.variable(name)}`" if field else ""
        default = field.default if field else parameter.default
        shown = "" if default is None else f"{default:g}" if isinstance(default, float) else f"`{default}`"
        if isinstance(default, int):
            shown = str(default)
        mark = " †" if name in scope else ""
        yield f"| `{name}`{mark} | {variable} | {shown} | {_values(name)} | {meanings[name]} |"


def _values(option: str) -> str:
    number = settings.NUMBERS.get(option)
    if number is None:
        return ""
    otherwise = f", or `None` (`{settings.NEVER}`)" if number.none else ""
    return f"{number.expected()}{otherwise}"


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
        if path.relative_to(PACKAGE).parts[0] not in {"testing", "cli"}
        for text, exception in _raised(ast.parse(path.read_text("utf-8")))
    }
    for text, exception in sorted(found, key=lambda each: each[0].lower().lstrip("`")):
        message, _, fix = text.partition("; ")
        yield f"| {_escaped(message)} | `{exception}` | {_escaped(fix)} |"


def _raised(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """The messages that are assigned to `msg` and raised in the next statement."""
    for node in ast.walk(tree):
        for body in (getattr(node, "body", None), getattr(node, "orelse", None)):
            if not isinstance(body, list):
                continue
            for first, second in zip(body, body[1:], strict=False):
                if not (isinstance(first, ast.Assign) and isinstance(second, ast.Raise) and _assigns_msg(first)):
                    continue
                raised = second.exc
                if isinstance(raised, ast.Call) and (text := _template(first.value)) not in _INTERNAL:
                    exception = ast.unparse(raised.func)
                    if text.partition(" ")[2] and exception != "AttributeError" and "must" in text + "must":
                        yield text, exception


def _assigns_msg(statement: ast.Assign) -> bool:
    return isinstance(statement.targets[0], ast.Name) and statement.targets[0].id == "msg"


def _template(value: ast.expr) -> str:
    """A message with `…` in place of its variable parts, and OPTION in place of the name of an option."""
    if isinstance(value, ast.Constant):
        return str(value.value)
    if not isinstance(value, ast.JoinedStr):
        return ""
    parts = []
    for part in value.values:
        if isinstance(part, ast.FormattedValue):
            name = ast.unparse(part.value)
            parts.append({"option": "OPTION", "name": "OPTION", "VARIABLE": "PROMETHEUS_MULTIPROC_DIR"}.get(name, "…"))
        else:
            parts.append(_template(part))
    return "".join(parts)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("{", "&#123;")
