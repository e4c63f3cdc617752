"""`doctor`: checks Redis, its configuration, the user's permissions, and this installation."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version

from mcp_eventscope import sdk_versions
from mcp_eventscope.cli.connection import Target, opened, settings_of, walking
from mcp_eventscope.cli.output import Exit, duration, print_json, print_lines, print_table, size
from mcp_eventscope.errors import IncompatibleSDKError, StoreRejectedError, StoreUnavailableError
from mcp_eventscope.redis.acl import worker_rules
from mcp_eventscope.redis.client import failure_text
from mcp_eventscope.redis.inspection import ServerFacts
from mcp_eventscope.redis.limits import STORE_TIMEOUT
from mcp_eventscope.redis.self_test import Capability
from mcp_eventscope.settings import mistyped

ROUND_TRIPS = 50
"""Number of round trips by which latency is measured."""
SLOW_SECONDS = 0.05
"""A p99 latency above which followers on other workers lag noticeably."""
CLOCK_SECONDS = 2.0
"""A difference of clocks above which times in logs and event ids are hard to compare."""
_OLDEST = (6, 2)
"""The oldest supported version of Redis. Every version of Valkey is supported."""
_NEWER = "run Redis 6.2 or later, or Valkey"
FULL, NEARLY_FULL = 0.95, 0.8
"""Fractions of maxmemory."""


class Severity(StrEnum):
    """The severity of a finding."""

    OK = "ok"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    check: str
    severity: Severity
    message: str
    fix: str = ""
    """What to do; empty if there is nothing to do."""


@dataclass(frozen=True, slots=True)
class Latency:
    """The latency of `PING`, in seconds."""

    p50: float
    p99: float
    samples: int


async def run(  # noqa: PLR0913 - the options of the command
    redis_url: str | None, key_prefix: str | None, name: str | None, *, max_keys: int, writes: bool, as_json: bool
) -> Exit:
    """Run all checks, and print the findings."""
    settings = settings_of(redis_url, key_prefix, name)
    async with opened(settings) as target:
        latency = await _latency(target)  # First, since no check can run unless Redis is reachable.
        try:
            skew, refused = await _skew(target)
            servers = await target.inspector.servers()
            findings = [
                *(finding for facts in servers for finding in _of_node(facts)),
                _of_latency(latency),
                _of_clock(skew, refused),
                *(await _of_permissions(target) if writes else ()),
                await _of_ttl(target, max_keys),
                await _of_name(target),
                *_of_installation(),
            ]
        except StoreUnavailableError as error:
            reason = failure_text(error.__cause__ or error, target.redis).removeprefix("Redis at ")
            msg = f"{reason}, although it answered PING; if it is a proxy, write the URL of Redis itself"
            raise StoreUnavailableError(msg) from error
    problems = [each for each in findings if each.severity in {Severity.WARNING, Severity.ERROR}]
    if as_json:
        print_json(
            "doctor",
            ok=not problems,
            address=target.address,
            servers=[{"node": each.node, "kind": each.kind, "version": each.version} for each in servers],
            latency_seconds=latency,
            clock_difference_seconds=skew,
            findings=findings,
        )
    else:
        _print(target.address, findings)
        print_lines(
            [f"{len(problems)} of {len(findings)} checks found something wrong" if problems else "nothing is wrong"]
        )
    return Exit.FAILED if problems else Exit.OK


def _print(address: str, findings: list[Finding]) -> None:
    from rich.text import Text  # noqa: PLC0415 - JSON needs no colours

    colours = {Severity.OK: "green", Severity.INFO: "cyan", Severity.WARNING: "yellow", Severity.ERROR: "bold red"}
    print_table(
        ("check", "", "finding"),
        [
            (
                each.check,
                Text(each.severity.value, style=colours[each.severity]),
                f"{each.message.rstrip('.')}. Fix: {each.fix}" if each.fix else each.message,
            )
            for each in findings
        ],
        title=f"Redis at {address}",
    )


async def _latency(target: Target) -> Latency:
    """Measure round trips."""
    took: list[float] = []
    for _ in range(ROUND_TRIPS + 1):
        began = time.perf_counter()
        await target.inspector.ping()
        took.append(time.perf_counter() - began)
    took = sorted(took[1:])  # The first one connects.
    return Latency(took[len(took) // 2], took[int(len(took) * 0.99)], len(took))


async def _skew(target: Target) -> tuple[float | None, str]:
    """How far Redis's clock is ahead of this one, in seconds; None, with the reason, if it could not be read."""
    skew, best = 0.0, float("inf")
    try:
        for _ in range(5):
            began = time.perf_counter()
            clock = await target.inspector.clock()
            elapsed = time.perf_counter() - began
            if elapsed < best:  # The fastest reply is the most accurate.
                best, skew = elapsed, clock / 1_000_000 - time.time() + elapsed / 2
    except StoreRejectedError as error:
        return None, str(error)
    return skew, ""


def _of_node(facts: ServerFacts) -> Iterator[Finding]:
    """The findings about one server, which name it in a cluster."""
    for check in (_of_server, _of_replication, _of_persistence, _of_memory):
        for each in check(facts):
            yield replace(each, message=f"{facts.node}: {each.message}") if facts.node else each


def _of_server(facts: ServerFacts) -> Iterator[Finding]:
    if not facts.info:
        yield Finding(
            "server",
            Severity.INFO,
            f"version, role, persistence and memory are unknown: {facts.problem or 'INFO is empty'}",
            "allow +info to the user; behind a proxy, run doctor with the URL of Redis itself",
        )
        return
    up = f"up for {duration(_number(facts, 'uptime_in_seconds'))}"
    message = f"{facts.kind} {facts.version or 'of an unknown version'}, {up}"
    if facts.kind == "redis" and facts.version and _version(facts) < _OLDEST:
        yield Finding("server", Severity.ERROR, f"{message}: too old for the commands of leases and messages", _NEWER)
    else:
        yield Finding("server", Severity.OK, message)
    if _number(facts, "cluster_enabled") and not facts.node:
        yield Finding(
            "cluster",
            Severity.ERROR,
            "the server is a node of a Redis Cluster, and refuses the keys of other nodes",
            "write redis+cluster:// in the URL",
        )


def _of_latency(latency: Latency) -> Finding:
    message = f"p50 {latency.p50 * 1000:.1f} ms, p99 {latency.p99 * 1000:.1f} ms over {latency.samples} round trips"
    if latency.p99 > STORE_TIMEOUT:
        return Finding(
            "latency",
            Severity.ERROR,
            f"{message}, above store_timeout ({STORE_TIMEOUT * 1000:.0f} ms): workers count such replies as an outage",
            "run Redis nearer to the workers; look for slow commands with SLOWLOG GET, and for swapping or fork pauses",
        )
    if latency.p99 > SLOW_SECONDS:
        return Finding("latency", Severity.WARNING, message, "run Redis nearer to the workers; see SLOWLOG GET")
    return Finding("latency", Severity.OK, message)


def _of_replication(facts: ServerFacts) -> Iterator[Finding]:
    role = facts.info.get("role")
    if role is None:
        return
    if role == "master":
        yield Finding("role", Severity.OK, f"primary with {_number(facts, 'connected_slaves')} replicas")
    elif role != "slave":
        yield Finding("role", Severity.INFO, f"{role}; see permissions for whether it accepts writes")
    else:
        yield Finding(
            "role", Severity.ERROR, "a replica, which refuses writes", "set redis_url to the primary, or fail over"
        )


def _of_persistence(facts: ServerFacts) -> Iterator[Finding]:
    if "aof_enabled" not in facts.info:
        return
    failed = [name for name in ("rdb_last_bgsave_status", "aof_last_write_status") if facts.info.get(name) == "err"]
    if failed:
        yield Finding(
            "persistence",
            Severity.ERROR,
            f"the last write to disk failed ({', '.join(failed)}), and Redis may refuse writes (MISCONF)",
            "free disk space and check permissions; the server's log has the reason",
        )
    elif _number(facts, "aof_enabled"):
        yield Finding("persistence", Severity.OK, "append-only file")
    else:
        yield Finding(
            "persistence",
            Severity.INFO,
            "no append-only file: a restart loses events since the last snapshot; workers store the newest again",
            "set appendonly yes if streams must survive a restart of Redis",
        )


def _of_memory(facts: ServerFacts) -> Iterator[Finding]:
    if "used_memory" not in facts.info:
        return
    used, limit = _number(facts, "used_memory"), _number(facts, "maxmemory")
    policy = str(facts.info.get("maxmemory_policy", ""))
    if not limit:
        yield Finding(
            "memory",
            Severity.INFO,
            f"{size(used)} used, without maxmemory",
            "set maxmemory below the memory of the host; mcp-eventscope forecast estimates the need",
        )
        return
    message = f"{size(used)} of {size(limit)} used ({used / limit:.0%})"
    fix = "raise maxmemory, or lower ttl or max_session_bytes; mcp-eventscope forecast estimates the need"
    if used > FULL * limit:
        yield Finding("memory", Severity.ERROR, message, fix)
    elif used > NEARLY_FULL * limit:
        yield Finding("memory", Severity.WARNING, message, fix)
    else:
        yield Finding("memory", Severity.OK, message)
    if not policy:
        yield Finding("eviction", Severity.INFO, "the server names no policy", "make sure that it does not evict keys")
    elif policy == "noeviction":
        yield Finding("eviction", Severity.OK, "noeviction")
    else:
        evicted = _number(facts, "evicted_keys")
        yield Finding(
            "eviction",
            Severity.ERROR if evicted else Severity.WARNING,
            f"{policy}: Redis may evict events and sessions that are in use ({evicted} keys evicted so far)",
            "CONFIG SET maxmemory-policy noeviction; use a server of its own if others need eviction",
        )


def _of_clock(skew: float | None, refused: str) -> Finding:
    if skew is None:
        return Finding("clock", Severity.INFO, f"could not be read: {refused}", "see permissions")
    ahead = "ahead of" if skew > 0 else "behind"
    message = f"Redis is {duration(abs(skew))} {ahead} this host"
    if abs(skew) > CLOCK_SECONDS:
        fix = "synchronize both hosts (NTP): times in event ids are those of Redis, times in logs those of workers"
        return Finding("clock", Severity.WARNING, message, fix)
    return Finding("clock", Severity.OK, message)


async def _of_permissions(target: Target) -> list[Finding]:
    """Test the operations of a store on temporary keys."""
    try:
        found = await target.store.self_test().run()
    except StoreRejectedError as error:
        fix = "free memory, or resolve the problem that the error names, and run doctor again"
        return [Finding("permissions", Severity.ERROR, str(error), fix)]
    missing = [each for each in found.missing if each is not Capability.NO_EVICTION]  # Another check.
    if not missing:
        return [Finding("permissions", Severity.OK, "scripts, commands, keys and channels work")]
    refused = f"; refused: {', '.join(found.refused)}" if found.refused else ""
    return [
        Finding(
            "permissions",
            Severity.ERROR,
            f"Redis does not provide: {', '.join(missing)}{refused}",
            _fix_of(missing, target.keys.prefix),
        )
    ]


def _fix_of(missing: Sequence[Capability], key_prefix: str) -> str:
    if Capability.VERSION in missing:
        return _NEWER
    if Capability.WRITES in missing:
        return "set redis_url to the primary"
    return f"ACL SETUSER <user> {worker_rules(key_prefix)}; if the server or a proxy has no such commands, use another"


async def _of_ttl(target: Target, max_keys: int) -> Finding:
    """Look for keys without TTL under the prefix, in steps that block Redis for half a millisecond."""
    lasting, keys = Counter[str](), 0
    try:
        with walking("keys without TTL", max_keys) as walk:
            async for seen in target.inspector.survey(walk):
                keys += seen.keys
                lasting.update(seen.lasting)
    except StoreRejectedError as error:
        return Finding("ttl", Severity.INFO, f"could not be checked: {error}", "allow +scan +pttl +type +memory|usage")
    part = f" among the first {walk.scanned} keys of the database (--max-keys)" if walk.truncated else ""
    if not lasting:
        return Finding("ttl", Severity.OK, f"all {keys} keys under {target.keys.prefix} expire{part}")
    kinds = ", ".join(f"{number} {kind or 'unknown'}" for kind, number in lasting.most_common())
    return Finding(
        "ttl",
        Severity.WARNING,
        f"{sum(lasting.values())} of {keys} keys under {target.keys.prefix} never expire{part}: {kinds}",
        "set ttl= (EVENTSCOPE_TTL) on all workers; or another program uses the prefix",
    )


async def _of_name(target: Target) -> Finding:
    """The server that has claimed the prefix. The key may not be readable, or hold another program's value."""
    name = target.settings.name
    try:
        owner = await target.inspector.server_name()
    except StoreRejectedError as error:
        return Finding("server_name", Severity.INFO, f"could not be read: {error}", "see permissions and cluster")
    if owner is None:
        return Finding("server_name", Severity.INFO, f"no running server has claimed the prefix {target.keys.prefix}")
    if name is not None and owner != name:
        return Finding(
            "server_name",
            Severity.ERROR,
            f"the server {owner!r} uses the prefix {target.keys.prefix}; sessions of {name!r} are answered 404",
            "give each server its own key_prefix",
        )
    return Finding("server_name", Severity.OK, f"the server {owner!r} uses the prefix {target.keys.prefix}")


def _of_installation() -> Iterator[Finding]:
    try:
        installed = version("mcp")
    except PackageNotFoundError:
        installed = "of an unknown version"
    try:
        sdk_versions.require_sdk("http_app", sdk_versions.SESSIONS)
    except IncompatibleSDKError as error:
        yield Finding("sdk", Severity.ERROR, f"mcp {installed}: {error}", "pip install 'mcp>=2.2,<3'")
    else:
        yield Finding("sdk", Severity.OK, f"mcp {installed} (of this environment, not of the workers)")
    for name, meant in mistyped().items():
        yield Finding("environment", Severity.WARNING, f"{name} has no effect", f"write {meant}")


def _number(facts: ServerFacts, name: str) -> int:
    value = facts.info.get(name, 0)
    return int(value) if isinstance(value, int | float) else 0


def _version(facts: ServerFacts) -> tuple[int, ...]:
    return tuple(int(part) for part in facts.version.split(".") if part.isdigit())
