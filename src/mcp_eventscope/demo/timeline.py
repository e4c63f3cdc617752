"""The output: the timeline row by row, then the metrics and the verdict."""

import signal
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.text import Text

from mcp_eventscope.demo import figures as names
from mcp_eventscope.demo.figures import Figures
from mcp_eventscope.demo.record import Kind, Moment, of

_GREEN, _YELLOW, _RED, _CYAN = "green", "yellow", "bold red", "cyan"
_REST_OF_ROW = 42
"""Columns of an event's row beside its bar, and a margin."""
_LONGEST_BAR = 56
_WHAT, _VALUE = 24, 8
"""Columns of the table of metrics; within 80 they leave room for the longest name."""

_TASKS: Mapping[Kind, tuple[str, str, str]] = {
    Kind.TASK: ("task", _CYAN, "{text} runs on {worker} as a task"),
    Kind.LEFT: ("left", _RED, "its client closes the connection"),
    Kind.STATUS: ("poll", _YELLOW, "{worker} answers: working, {text}"),
    Kind.SIGNAL: ("signal", _GREEN, "{worker}: {text} has changed"),
}
"""The rows of the moments of tasks and subscriptions."""


class Timeline:
    """Writes on a console.

    Args:
        console: Where to.
        steps: The number of events of a call.
    """

    def __init__(self, console: Console, steps: int) -> None:
        self._console = console
        self._steps = steps
        self._bar = max(8, min(_LONGEST_BAR, console.width - _REST_OF_ROW))
        self._phase = "before"
        unicode = console.encoding.startswith("utf")
        self._done, self._open, self._arrow = ("━", "─", " → ") if unicode else ("#", "-", " > ")

    def title(self, text: str) -> None:
        """The heading."""
        self._gap()
        self._print(text, "bold")

    def path(self, parts: Sequence[str]) -> None:
        """The hops of a call."""
        self._print(self._arrow.join(parts), "dim")

    def redis(self, text: str) -> None:
        """The Redis of the workers."""
        self._print(f"Redis: {text}", "dim")

    def scene(self, number: int, text: str) -> None:
        """The heading of a scene; its time starts at zero."""
        self._phase = "before"
        self._gap()
        self._print(f"{number}  {text}", "bold")
        self._gap()

    def show(self, moment: Moment) -> None:
        """One row."""
        worker = f"worker {moment.worker or '?'}"
        match moment.kind:
            case Kind.CALL:
                self._row(moment, "call", _CYAN, f"{moment.text} runs on {worker}")
            case Kind.EVENT:
                self._row(moment, self._phase, _GREEN if self._phase == "after" else "", self._progress(moment))
            case Kind.CUT:
                what = "stream" if moment.number == 1 else "streams"
                self._gap()
                self._row(moment, "cut", _RED, f"{moment.number} {what} of {worker} reset; its tool runs on")
                self._phase = "cut"
            case Kind.KILL:
                name = signal.Signals(moment.number).name if moment.number else "no signal"
                self._gap()
                self._row(moment, "killed", _RED, f"{worker}, by {name}")
                self._phase = "killed"
            case Kind.RETURN:
                answer = "" if moment.number == 200 else f", answered {moment.number}"
                self._row(moment, "resumed", _YELLOW, f"by {worker}, Last-Event-ID {moment.text}{answer}")
                self._gap()
                self._phase = "after"
            case Kind.RESULT:
                self._row(moment, "result", _CYAN, moment.text)
            case Kind.FAILURE:
                self._row(moment, "error", _RED, f"{moment.number}: {moment.text}" if moment.number else moment.text)
            case _:
                phase, style, what = _TASKS[moment.kind]
                self._row(moment, phase, style, what.format(text=moment.text, worker=worker))

    def served(self, figures: Mapping[str, Figures]) -> None:
        """Print which workers served the resumed streams.

        Args:
            figures: The metrics of each worker in this scene, by its name.
        """
        served = [
            f"worker {name} " + (f"replayed {it.replayed} and sent {it.followed} live" if it.delivered else "sent none")
            for name, it in figures.items()
        ]
        self._print(f"Events on resumed streams, by /metrics: {', '.join(served)}.", "dim")

    def answered(self, record: Sequence[Moment], lease: float) -> None:
        """Print how long after the kill the error arrived.

        Args:
            record: The moments of the client.
            lease: The lease of a worker, in seconds.
        """
        killed, failed = of(Kind.KILL, record), of(Kind.FAILURE, record)
        if killed and failed:
            seconds = failed[0].at - killed[0].at
            text = f"The error arrived {seconds:.1f} s after the kill; a worker's lease is {lease:g} s."
            self._gap()
            self._print(text, "dim")
            self._gap()

    def lateness(self, record: Sequence[Moment], started: float, sent_at: Sequence[float]) -> None:
        """Print the latency of the events that the client missed, and of the others, by the server's clock.

        Args:
            record: The moments of the client.
            started: The zero of its times, in seconds since the epoch.
            sent_at: When each step was sent.
        """
        cut, back = of(Kind.CUT, record), of(Kind.RETURN, record)
        if not (cut and back):
            return
        late: dict[bool, list[float]] = {True: [], False: []}
        for event in of(Kind.EVENT, record):
            if 1 <= event.number <= len(sent_at):
                sent = sent_at[event.number - 1] - started
                late[cut[0].at < sent < back[0].at].append(event.at - sent)
        missed, others = late[True], late[False]
        self._gap()
        text = f"The client missed {len(missed)} of {self._steps} events"
        self._print(
            text + (f" and received them {min(missed):.2f} to {max(missed):.2f} s late." if missed else "."), "dim"
        )
        if others:
            self._print(f"The others arrived within {max(others) * 1000:.0f} ms.", "dim")

    def figures(self, alive: Mapping[str, Figures], lost: Mapping[str, Figures]) -> None:
        """Print the table of metrics.

        Args:
            alive: The metrics of each worker that is alive, by its name.
            lost: The last metrics of each killed worker.
        """
        self._gap()
        self._print(f"/metrics, summed over the workers that are alive: {', '.join(alive) or 'none'}", "bold")
        self._gap()
        figures = Figures.sum(alive.values())
        for what, value, metric in _rows(figures):
            row = Text(f"  {what:<{_WHAT}}")
            row.append(f"{value:>{_VALUE}}", style="bold")
            row.append(f"   {metric}", style="dim")
            self._console.print(row, soft_wrap=True)
        for name, last in lost.items():
            self._gap()
            stored = f"{last.total(names.EVENTS_STORED):.0f} events stored, {last.delivered} sent on resumed streams"
            self._print(
                f"The counters of worker {name} ended with it. At its last scrape, before scene 3: {stored}.", "dim"
            )

    def verdict(self, faults: Sequence[str]) -> None:
        """Print the verdict."""
        self._gap()
        if not faults:
            text = f"PASS  {self._steps} of {self._steps} events, each once and in order, resumed on the other worker."
            self._print(text, "bold green")
            self._print(
                "PASS  A task outlived its client; the other worker had its result and its signal.", "bold green"
            )
            self._print("PASS  The killed worker's call was answered in time; its session continued.", "bold green")
            self._print("PASS  The killed worker's task failed with an error, on the other worker.", "bold green")
        for fault in faults:
            self._print(f"FAIL  {fault}", _RED)
        self._gap()

    def log(self, name: str, text: str) -> None:
        """Print a log after a failure, unless it is empty."""
        if text.strip():
            self._print(f"Log of {name}:", "bold")
            self._console.print(Text(text.rstrip(), style="dim"), soft_wrap=True)
            self._gap()

    def _row(self, moment: Moment, phase: str, style: str, what: str | Text) -> None:
        head = Text(f"  {moment.at:6.3f} s  ")
        head.append(f"{phase:<9}", style=style)
        self._wrapped(head, what if isinstance(what, Text) else Text(what, style=style))

    def _progress(self, moment: Moment) -> Text:
        done = round(self._bar * min(moment.number, self._steps) / self._steps)
        bar = Text()
        bar.append(self._done * done, style=_GREEN)
        bar.append(self._open * (self._bar - done), style="dim")
        bar.append(f"  {moment.number:>2}/{self._steps}", style="bold")
        bar.append(f"  {moment.text}", style="dim")
        return bar

    def _print(self, text: str, style: str) -> None:
        self._wrapped(Text("  "), Text(text, style=style))

    def _wrapped(self, head: Text, text: Text) -> None:
        """Write a text, its lines indented like the first one."""
        for number, line in enumerate(text.wrap(self._console, max(20, self._console.width - len(head) - 1))):
            line.rstrip()
            self._console.print((Text(" " * len(head)) if number else head) + line)

    def _gap(self) -> None:
        self._console.print()


def _rows(figures: Figures) -> list[tuple[str, str, str]]:
    rows = [("events stored", f"{figures.total(names.EVENTS_STORED):.0f}", names.EVENTS_STORED)]
    rows += [
        (f"  {kind}", f"{count:.0f}", f'{{message_type="{kind}"}}')
        for kind, count in figures.by(names.EVENTS_STORED, "message_type").items()
    ]
    if (seconds := figures.mean(names.STORE_SECONDS)) is not None:
        rows.append(("mean store latency", f"{seconds * 1000:.2f} ms", names.STORE_SECONDS))
    rows += [
        (f"replays, {outcome}", f"{count:.0f}", names.REPLAY_SECONDS)
        for outcome, count in figures.by(f"{names.REPLAY_SECONDS}_count", "outcome").items()
    ]
    rows.append(("events replayed", f"{figures.total(f'{names.REPLAYED_EVENTS}_sum'):.0f}", names.REPLAYED_EVENTS))
    rows.append(("events sent live", f"{figures.total(names.EVENTS_FOLLOWED):.0f}", names.EVENTS_FOLLOWED))
    if (age := figures.mean(names.RESUME_AGE)) is not None:
        rows.append(("age at resume", f"{age:.2f} s", names.RESUME_AGE))
    rows.append(("requests orphaned", f"{figures.total(names.ORPHANED):.0f}", names.ORPHANED))
    rows.append(("events missing", f"{figures.total(names.EVENTS_MISSING):.0f}", names.EVENTS_MISSING))
    rows.append(("errors", f"{figures.total(names.ERRORS):.0f}", names.ERRORS))
    return rows
