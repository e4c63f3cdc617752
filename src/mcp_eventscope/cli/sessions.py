"""`workers` and `sessions`: lists and single sessions, and the end of a session."""

import signal
import threading
from collections.abc import Sequence

import click

from mcp_eventscope.cli.connection import NotFoundError, Target, opened, settings_of, walking
from mcp_eventscope.cli.output import Exit, duration, print_json, print_lines, print_table, size
from mcp_eventscope.redis.inspection import RunFacts, SessionFacts
from mcp_eventscope.settings import DEFAULT_TTL, Settings
from mcp_eventscope.store.coordination import DEFAULT_WORKER_LEASE
from mcp_eventscope.telemetry.tracing import session_hash

_NONE = "none: correct --key-prefix or --name, or add --all for ended ones; clients of 2026-07-28 have no sessions"

__all__ = ["end", "list_sessions", "list_workers", "settings_of", "show"]


async def list_workers(settings: Settings, *, max_keys: int, as_json: bool) -> Exit:
    """Print the workers."""
    async with opened(settings) as target:
        with walking("workers", max_keys) as walk:
            workers = await target.inspector.workers(walk)
    alive = sum(each.alive for each in workers)
    orphaned = sum(each.requests for each in workers if not each.alive)
    if as_json:
        print_json("workers", truncated=walk.truncated, alive=alive, orphaned_requests=orphaned, workers=workers)
    else:
        print_table(
            ("worker", "state", "lease", "sessions", "running", "inbox"),
            [
                (
                    each.name,
                    "alive" if each.alive else "dead",
                    duration(each.lease_seconds),
                    each.sessions,
                    each.requests,
                    each.inbox,
                )
                for each in workers
            ],
            title=f"{alive} of {len(workers)} workers alive under {settings.key_prefix} on {target.address}",
        )
        if not workers:
            print_lines(["no worker uses this prefix: start a server with the same Redis, or correct --key-prefix"])
        if orphaned:
            print_lines([f"{orphaned} requests of dead workers: their clients receive an error when they resume"])
    return Exit.OK if alive and not orphaned else Exit.FAILED


async def list_sessions(settings: Settings, *, limit: int, ended: bool, max_keys: int, as_json: bool) -> Exit:
    """Print sessions, the youngest first."""
    async with opened(settings) as target:
        with walking("sessions", max_keys) as walk:
            page = await target.inspector.sessions(walk, limit=limit, ended=ended, server=settings.name)
    found = sorted(page.sessions, key=lambda each: each.age if each.age is not None else float("inf"))
    if as_json:
        print_json("sessions list", truncated=page.truncated, sessions=[_members(each) for each in found])
        return Exit.OK
    number = f"{len(found)} session{'' if len(found) == 1 else 's'}"
    print_table(
        ("session", "hash", "state", "age", "expires", "running", "accounted", "workers", "client"),
        [
            (
                each.session_id,
                session_hash(each.session_id),
                each.state,
                duration(each.age),
                duration(each.expires_in),
                each.running,
                size(each.accounted_bytes),
                " ".join(each.workers),
                each.client,
            )
            for each in found
        ],
        title=f"{number} under {settings.key_prefix} on {target.address}",
    )
    if not found and not page.truncated:
        print_lines([_NONE])
    if page.truncated:
        print_lines(["there may be more: raise --limit or --max-keys"])
    return Exit.OK


async def show(settings: Settings, session: str, *, max_keys: int, as_json: bool) -> Exit:
    """Print one session with its streams."""
    async with opened(settings) as target:
        session_id = await target.resolve(session, max_keys)
        facts, runs = await target.inspector.session(session_id), await target.inspector.runs(session_id)
        alive = await target.inspector.alive([*facts.workers, *(each.worker for each in runs)])
    if facts.state == "absent" and not runs:
        msg = "session must be one under this prefix, got none; run mcp-eventscope sessions list"
        raise NotFoundError(msg)
    if as_json:
        streams = [{**_run_members(each), "worker_alive": alive[each.worker]} for each in runs]
        print_json("sessions show", session=_members(facts), workers_alive=alive, streams=streams)
        return Exit.OK
    _print_session(facts, runs, alive)
    return Exit.OK


def _print_session(facts: SessionFacts, runs: Sequence[RunFacts], alive: dict[str, bool]) -> None:
    workers = [f"{name} ({'alive' if alive[name] else 'dead'})" for name in facts.workers]
    print_table(
        ("", ""),
        [
            ("session", facts.session_id),
            ("hash", session_hash(facts.session_id)),
            ("state", facts.state),
            ("server", facts.server),
            ("audience", facts.audience),
            ("authenticated", facts.authenticated),
            ("client", facts.client),
            ("revision", facts.protocol_version),
            ("age", duration(facts.age)),
            ("expires in", duration(facts.expires_in)),
            ("workers", ", ".join(workers)),
            ("accounted", f"{size(facts.accounted_bytes)}, without the newest events"),
            ("memory", size(sum(each.memory or 0 for each in runs))),
        ],
    )
    print_table(
        ("stream", "run", "state", "worker", "events", "retained", "memory", "expires"),
        [
            (
                each.stream,
                each.run,
                each.state,
                "alive" if alive[each.worker] else "dead",
                f"{each.first}-{each.last}" if each.last else "none",
                each.retained,
                size(each.memory),
                duration(each.expires_in),
            )
            for each in runs
        ],
    )


async def end(settings: Settings, session: str, *, yes: bool, max_keys: int, as_json: bool) -> Exit:
    """End a session, as a client's DELETE does."""
    async with opened(settings) as target:
        session_id = await target.resolve(session, max_keys)
        facts = await target.inspector.session(session_id)
        if facts.state == "absent" and not await target.inspector.runs(session_id):
            msg = "session must be one under this prefix, got none; run mcp-eventscope sessions list"
            raise NotFoundError(msg)
        ended = True
        if not yes:
            calls = f"{facts.running} running {'call' if facts.running == 1 else 'calls'}"
            hashed = session_hash(session_id)
            question = f"End session {hashed} ({facts.state}, {calls}) on all workers, and delete its events?"
            ended = _confirmed(question)
        if ended:
            await _end(target, session_id, facts)
    if as_json:
        print_json("sessions end", session_id=session_id, session_hash=session_hash(session_id), ended=ended)
    else:
        print_lines([f"session {session_hash(session_id)} {'ended' if ended else 'not ended, as answered'}"])
    return Exit.OK if ended else Exit.FAILED


def _confirmed(question: str) -> bool:
    """Ask on standard error: the result is on standard output.

    Raises:
        UsageError: Standard input has no answer.
    """
    # On SIGINT the event loop cancels its task, which would wait for the answer: Ctrl+C would end nothing.
    own = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.default_int_handler) if own else None
    try:
        return click.confirm(question, err=True)
    except click.Abort as error:
        if not isinstance(error.__context__, EOFError):
            raise
        msg = "--yes must be given, or standard input must answer the question, got neither; add --yes"
        raise click.UsageError(msg) from None
    finally:
        if own:
            signal.signal(signal.SIGINT, before)


async def _end(target: Target, session_id: str, facts: SessionFacts) -> None:
    """End the session, and return when the message to its workers is sent.

    This process is a worker for that time: only workers have an outbox. A worker that misses the message notices the
    end with the next commit or request of the session.
    """

    async def republish() -> None:
        """Publish nothing: this worker serves no session."""

    ttl = max(round(facts.expires_in or 0), target.settings.ttl or 0, DEFAULT_TTL)
    async with target.store.coordinator.hold_lease(DEFAULT_WORKER_LEASE, lambda _: None, republish):
        await target.store.coordinator.end(session_id, ttl=ttl)


def _members(facts: SessionFacts) -> dict[str, object]:
    return {
        "session_id": facts.session_id,
        "session_hash": session_hash(facts.session_id),
        **{name: getattr(facts, name) for name in SessionFacts.__dataclass_fields__ if name != "session_id"},
    }


def _run_members(facts: RunFacts) -> dict[str, object]:
    return {name: getattr(facts, name) for name in RunFacts.__dataclass_fields__}
