"""`why`: explains why a `Last-Event-ID` can or cannot be resumed."""

from mcp_eventscope.cli.connection import opened, settings_of, walking
from mcp_eventscope.cli.output import Exit, duration, print_json, print_lines, print_table
from mcp_eventscope.sessions.diagnosis import Diagnosis, diagnose
from mcp_eventscope.settings import Settings
from mcp_eventscope.telemetry.tracing import session_hash

__all__ = ["run", "settings_of"]


async def run(settings: Settings, last_event_id: str, session: str | None, *, max_keys: int, as_json: bool) -> Exit:
    """Print the diagnosis. The session is named by its hash in logs: the operator did not ask for its id."""
    async with opened(settings) as target:
        session_id = None if session is None else await target.resolve(session, max_keys)
        with walking("searching the session", max_keys) as walk:
            found = await diagnose(target.store, target.inspector, last_event_id, walk, session_id=session_id)
    if as_json:
        print_json("why", **_members(found))
    else:
        _print(found)
    return Exit.OK if found.resumable else Exit.FAILED


def _members(found: Diagnosis) -> dict[str, object]:
    members: dict[str, object] = {name: getattr(found, name) for name in Diagnosis.__dataclass_fields__}
    session = found.session
    members["session"] = (
        None
        if session is None
        else {
            "session_hash": session_hash(session.session_id),
            "state": session.state,
            "server": session.server,
            "expires_in": session.expires_in,
            "running": session.running,
            "workers": session.workers,
        }
    )
    return members


def _print(found: Diagnosis) -> None:
    print_lines([found.sentence])
    rows: list[tuple[str, object]] = [("verdict", found.verdict.value)]
    if found.run is not None:
        session, kept = found.session, found.retained
        rows += [
            ("session", "unknown" if session is None else f"{session_hash(session.session_id)} ({session.state})"),
            ("stream", found.stream),
            ("worker", f"{found.worker} ({'alive' if found.worker_alive else 'dead'})"),
            ("last event", f"number {found.number} of run {found.run}, {duration(found.age)} ago"),
            (
                "retained",
                f"numbers {kept.first} to {kept.last}, {kept.state}, for {duration(kept.expires_in) or 'ever'}"
                if kept is not None and kept.last
                else "nothing",
            ),
            ("would deliver", found.delivered),
            ("missing", found.missing),
        ]
    print_table(("", ""), rows)
