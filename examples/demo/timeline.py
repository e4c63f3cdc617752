"""What people look at: the timeline, row by row as it happens, then the figures and the verdict."""

from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from examples.demo import figures as names
from examples.demo.figures import Figures
from examples.demo.record import Kind, Moment, of

_GREEN, _YELLOW, _RED, _CYAN = "green", "yellow", "bold red", "cyan"
_REST_OF_ROW = 42
"""Columns of an event's row that are not its bar, and a margin."""
_LONGEST_BAR = 56
_WHAT, _VALUE = 24, 8
"""Columns of the table of figures, which leave room in 80 for the longest name of a metric."""


class Timeline:
    """Writes on a console.

    Args:
        console: Where to.
        steps: How many events are owed.
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
        self._say(text, "bold")

    def path(self, parts: Sequence[str]) -> None:
        """What the call goes through."""
        self._say(self._arrow.join(parts), "dim")
        self._gap()

    def show(self, moment: Moment) -> None:
        """One row."""
        match moment.kind:
            case Kind.EVENT:
                self._row(moment, self._phase, _GREEN if self._phase == "after" else "", self._progress(moment))
            case Kind.CUT:
                what = "connection" if moment.number == 1 else "connections"
                self._gap()
                self._row(moment, "cut", _RED, f"{moment.number} {what} reset in the middle of a stream")
                self._phase = "cut"
            case Kind.RETURN:
                answer = "" if moment.number == 200 else f", answered {moment.number}"
                self._row(moment, "resumed", _YELLOW, f"the client is back, Last-Event-ID {moment.text}{answer}")
                self._gap()
                self._phase = "after"
            case Kind.RESULT:
                self._row(moment, "result", _CYAN, moment.text)
            case Kind.FAILURE:
                self._row(moment, "failure", _RED, moment.text)

    def lateness(self, record: Sequence[Moment], started: float, said_at: Sequence[float]) -> None:
        """How late the events came, by the server's clock: those said while nobody listened, and the others.

        Args:
            record: What the client saw.
            started: The zero of its times, in seconds since the epoch.
            said_at: When each step was reported.
        """
        cut, back = of(Kind.CUT, record), of(Kind.RETURN, record)
        if not (cut and back):
            return
        late: dict[bool, list[float]] = {True: [], False: []}
        for event in of(Kind.EVENT, record):
            if 1 <= event.number <= len(said_at):
                said = said_at[event.number - 1] - started
                late[cut[0].at < said < back[0].at].append(event.at - said)
        missed, heard = late[True], late[False]
        self._gap()
        text = f"{len(missed)} of {self._steps} events were said while nobody listened"
        self._say(text + (f", and came {min(missed):.2f} to {max(missed):.2f} s late." if missed else "."), "dim")
        if heard:
            self._say(f"The others came within {max(heard) * 1000:.0f} ms.", "dim")

    def figures(self, figures: Figures) -> None:
        """The table of what /metrics reports."""
        self._gap()
        self._say("What the store's own /metrics reports", "bold")
        self._gap()
        for what, value, metric in _rows(figures):
            row = Text(f"  {what:<{_WHAT}}")
            row.append(f"{value:>{_VALUE}}", style="bold")
            row.append(f"   {metric}", style="dim")
            self._console.print(row, soft_wrap=True)

    def verdict(self, faults: Sequence[str]) -> None:
        """The last word."""
        self._gap()
        if not faults:
            text = f"PASS  {self._steps} of {self._steps} events, each once and in order, over a stream that was cut."
            self._say(text, "bold green")
        for fault in faults:
            self._say(f"FAIL  {fault}", _RED)
        self._gap()

    def log(self, whose: str, text: str) -> None:
        """What somebody wrote while it failed; nothing when that is nothing."""
        if text.strip():
            self._say(f"What {whose} logged:", "bold")
            self._console.print(Text(text.rstrip(), style="dim"), soft_wrap=True)
            self._gap()

    def _row(self, moment: Moment, phase: str, style: str, what: str | Text) -> None:
        row = Text(f"  {moment.at:6.3f} s  ", style="")
        row.append(f"{phase:<9}", style=style)
        row.append_text(what if isinstance(what, Text) else Text(what, style=style))
        self._console.print(row)

    def _progress(self, moment: Moment) -> Text:
        done = round(self._bar * min(moment.number, self._steps) / self._steps)
        bar = Text()
        bar.append(self._done * done, style=_GREEN)
        bar.append(self._open * (self._bar - done), style="dim")
        bar.append(f"  {moment.number:>2}/{self._steps}", style="bold")
        bar.append(f"  {moment.text}", style="dim")
        return bar

    def _say(self, text: str, style: str) -> None:
        self._console.print(Padding(Text(text, style=style), (0, 0, 0, 2), expand=False))

    def _gap(self) -> None:
        self._console.print()


def _rows(figures: Figures) -> list[tuple[str, str, str]]:
    rows = [("events stored", f"{figures.total(names.STORED_EVENTS):.0f}", names.STORED_EVENTS)]
    rows += [
        (f"  {kind}", f"{count:.0f}", f'{{kind="{kind}"}}')
        for kind, count in figures.by(names.STORED_EVENTS, "kind").items()
    ]
    if (seconds := figures.mean(names.STORE_SECONDS)) is not None:
        rows.append(("mean time to store one", f"{seconds * 1000:.2f} ms", names.STORE_SECONDS))
    rows += [
        (f"replays, {outcome}", f"{count:.0f}", names.REPLAY_SECONDS)
        for outcome, count in figures.by(f"{names.REPLAY_SECONDS}_count", "outcome").items()
    ]
    rows.append(("events replayed", f"{figures.total(f'{names.REPLAYED_EVENTS}_sum'):.0f}", names.REPLAYED_EVENTS))
    rows.append(("events followed live", f"{figures.total(names.FOLLOWED_EVENTS):.0f}", names.FOLLOWED_EVENTS))
    if (age := figures.mean(names.RESUME_AGE)) is not None:
        rows.append(("age of the last event", f"{age:.2f} s", names.RESUME_AGE))
    rows.append(("events missing", f"{figures.total(names.MISSING_EVENTS):.0f}", names.MISSING_EVENTS))
    rows.append(("errors", f"{figures.total(names.ERRORS):.0f}", names.ERRORS))
    return rows
