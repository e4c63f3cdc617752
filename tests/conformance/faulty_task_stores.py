"""Task stores with one fault each, under the suite; `test_conformance_suite.py` runs it to fail."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import anyio.lowlevel
import pytest

from mcp_eventscope import InMemoryTaskStore
from mcp_eventscope.store.messages import ErrorData
from mcp_eventscope.tasks.errors import worker_lost
from mcp_eventscope.tasks.facts import TaskStatus
from mcp_eventscope.tasks.protocol import JSONObject, NewTask, RunSignals, RunState, Settled, Task
from mcp_eventscope.testing import TaskStoreConformance, TaskStores

LIMIT = 1 << 20


class Lazy(InMemoryTaskStore):
    """Stores a task when it is first synchronized."""

    async def create(self, new: NewTask) -> Task:
        """Return a task that is not stored."""
        task = await super().create(new)
        self._hidden = self._records.pop(task.task_id)
        return task

    async def sync(self, runs: Sequence[RunState]) -> Sequence[RunSignals]:
        """Store the tasks."""
        for run in runs:
            self._records.setdefault(run.task.task_id, self._hidden)
        return await super().sync(runs)


class Counting(InMemoryTaskStore):
    """Numbers its tasks."""

    numbers = itertools.count(10**20)

    async def create(self, new: NewTask) -> Task:
        """Take the next number as the id."""
        task = await super().create(new)
        record = self._records.pop(task.task_id)
        record.task = replace(task, task_id=f"task-{next(self.numbers)}")
        self._records[record.task.task_id] = record
        return record.task


class Untraced(InMemoryTaskStore):
    """Drops the trace context."""

    async def create(self, new: NewTask) -> Task:
        """Create without it."""
        return await super().create(replace(new, traceparent=""))


class Raising(InMemoryTaskStore):
    """Raises for unknown ids."""

    async def get(self, task_id: str, *, owner: str | None) -> Task | None:
        """Look up the record as if it existed."""
        self._records[task_id]
        return await super().get(task_id, owner=owner)


class Open(InMemoryTaskStore):
    """Lets every principal cancel a task."""

    async def request_cancel(self, task_id: str, *, owner: str | None) -> bool:
        """Cancel in the name of the owner."""
        record = self._records.get(task_id)
        return record is not None and await super().request_cancel(task_id, owner=record.task.owner)


class Nameless(InMemoryTaskStore):
    """Takes no authentication for an empty name."""

    async def create(self, new: NewTask) -> Task:
        """Create under the empty name."""
        return await super().create(replace(new, owner=new.owner or ""))

    async def get(self, task_id: str, *, owner: str | None) -> Task | None:
        """Look up under the empty name."""
        return await super().get(task_id, owner=owner or "")


class Keeping(InMemoryTaskStore):
    """Keeps discarded tasks."""

    async def discard(self, run: RunState) -> None:
        """Do nothing."""


class Silent(InMemoryTaskStore):
    """Publishes no progress."""

    async def sync(self, runs: Sequence[RunState]) -> Sequence[RunSignals]:
        """Return signals only."""
        return await super().sync([replace(run, status_message="") for run in runs])


class Shuffled(InMemoryTaskStore):
    """Returns signals in the reverse order."""

    async def sync(self, runs: Sequence[RunState]) -> Sequence[RunSignals]:
        """Reverse them."""
        return list(reversed(await super().sync(runs)))


class WithoutNulls(InMemoryTaskStore):
    """Drops nulls from results."""

    async def set_completed(self, run: RunState, result: JSONObject) -> Settled:
        """Store what is left."""
        return await super().set_completed(run, {key: value for key, value in result.items() if value is not None})


class Shortened(InMemoryTaskStore):
    """Drops the data of errors."""

    async def set_failed(self, run: RunState, error: ErrorData) -> Settled:
        """Store code and message."""
        return await super().set_failed(run, ErrorData(code=error.code, message=error.message))


class Truncating(InMemoryTaskStore):
    """Completes a task without its result if that is too large."""

    async def set_completed(self, run: RunState, result: JSONObject) -> Settled:
        """Store an empty result instead."""
        settled = await super().set_completed(run, result if len(str(result)) < LIMIT else {})
        return Settled.TOO_LARGE if len(str(result)) >= LIMIT else settled


class Reopening(InMemoryTaskStore):
    """Replaces a final status by a later one."""

    async def set_completed(self, run: RunState, result: JSONObject) -> Settled:
        """Complete in any case."""
        record = self._records[run.task.task_id]
        record.task = replace(record.task, status=TaskStatus.WORKING)
        return await super().set_completed(run, result)


class Expiring(InMemoryTaskStore):
    """Counts the TTL from creation."""

    async def get(self, task_id: str, *, owner: str | None) -> Task | None:
        """Return a TTL that never grows."""
        task = await super().get(task_id, owner=owner)
        return None if task is None else replace(task, ttl_ms=self._ttl)


class Forgetful(InMemoryTaskStore):
    """Counts every end as unread."""

    async def get(self, task_id: str, *, owner: str | None) -> Task | None:
        """Read, and forget it."""
        task = await super().get(task_id, owner=owner)
        if task is not None:
            self._records[task_id].seen = False
        return task


class Consuming(InMemoryTaskStore):
    """Returns each signal once."""

    async def sync(self, runs: Sequence[RunState]) -> Sequence[RunSignals]:
        """Forget what was returned."""
        signals = await super().sync(runs)
        for run in runs:
            if (record := self._records.get(run.task.task_id)) is not None:
                record.cancel_requested_at = None
                record.answers.clear()
        return signals


class Impatient(InMemoryTaskStore):
    """Ends a task when its client asks to cancel it."""

    async def request_cancel(self, task_id: str, *, owner: str | None) -> bool:
        """Change the status immediately."""
        known = await super().request_cancel(task_id, owner=owner)
        if known and not (record := self._records[task_id]).task.status.final:
            record.task = replace(record.task, status=TaskStatus.CANCELLED)
        return known


class AllOrNothing(InMemoryTaskStore):
    """Takes the first answer for all."""

    async def resolve_input_requests(
        self, task_id: str, responses: Mapping[str, JSONObject], *, owner: str | None
    ) -> bool:
        """Close all requests."""
        known = await super().resolve_input_requests(task_id, responses, owner=owner)
        if known and not self._records[task_id].task.status.final:
            self._ask(self._records[task_id], {})
        return known


class LastAnswer(InMemoryTaskStore):
    """Takes the last answer to a request."""

    async def resolve_input_requests(
        self, task_id: str, responses: Mapping[str, JSONObject], *, owner: str | None
    ) -> bool:
        """Replace earlier answers."""
        known = await super().resolve_input_requests(task_id, responses, owner=owner)
        if known:
            self._records[task_id].answers |= responses
        return known


class Insisting(InMemoryTaskStore):
    """Repeats answered requests."""

    async def set_input_requests(self, run: RunState) -> Settled:
        """Ask everything."""
        settled = await super().set_input_requests(run)
        if settled is Settled.STORED:
            self._ask(self._records[run.task.task_id], run.input_requests)
        return settled


class Clinging(InMemoryTaskStore):
    """Keeps requests that the tool has given up."""

    async def sync(self, runs: Sequence[RunState]) -> Sequence[RunSignals]:
        """Ignore them."""
        return await super().sync([replace(run, received=()) for run in runs])


class Racing(InMemoryTaskStore):
    """Reads the status, waits, and writes the end."""

    async def set_completed(self, run: RunState, result: JSONObject) -> Settled:
        """Let others end the task meanwhile."""
        before = (record := self._records[run.task.task_id]).task
        await anyio.lowlevel.checkpoint()
        record.task = before
        return await super().set_completed(run, result)


class Mortal(InMemoryTaskStore):
    """Its process may die, and its data get lost."""

    dead = False

    async def get(self, task_id: str, *, owner: str | None) -> Task | None:
        """Declare an open task failed."""
        record = self._records.get(task_id)
        if self.dead and record is not None and not record.task.status.final:
            error = worker_lost()
            await InMemoryTaskStore.set_failed(self, RunState(record.task), error)
            found = await super().get(task_id, owner=owner)
            return None if found is None else replace(found, orphaned=True)
        return await super().get(task_id, owner=owner)


class Unfenced(Mortal):
    """Lets a dead process complete its task."""

    async def set_completed(self, run: RunState, result: JSONObject) -> Settled:
        """Complete in any case."""
        record = self._records[run.task.task_id]
        record.task = replace(record.task, status=TaskStatus.WORKING)
        return await super().set_completed(run, result)


class Condemning(Mortal):
    """Declares ended tasks failed, too."""

    async def get(self, task_id: str, *, owner: str | None) -> Task | None:
        """Reopen a task of a dead process first."""
        record = self._records.get(task_id)
        if self.dead and record is not None:
            record.task = replace(record.task, status=TaskStatus.WORKING)
        return await super().get(task_id, owner=owner)


class Faulty(TaskStoreConformance):
    """The suite on a faulty store."""

    max_result_bytes = LIMIT
    make: ClassVar[type[InMemoryTaskStore]]

    @pytest.fixture
    def stores(self) -> TaskStores:
        """The faulty store, twice."""
        store = self.make(max_result_bytes=LIMIT)
        return TaskStores(store, store)

    async def declare_dead(self, stores: TaskStores) -> None:
        """Let the process of a `Mortal` store die."""
        assert isinstance(stores.runs, Mortal)
        stores.runs.dead = True

    async def lose_data(self, stores: TaskStores) -> None:
        """Delete all records."""
        assert isinstance(stores.runs, Mortal)
        stores.runs._records.clear()


class TestLazy(Faulty):
    """The suite on `Lazy`."""

    make = Lazy


class TestCounting(Faulty):
    """The suite on `Counting`."""

    make = Counting


class TestUntraced(Faulty):
    """The suite on `Untraced`."""

    make = Untraced


class TestRaising(Faulty):
    """The suite on `Raising`."""

    make = Raising


class TestOpen(Faulty):
    """The suite on `Open`."""

    make = Open


class TestNameless(Faulty):
    """The suite on `Nameless`."""

    make = Nameless


class TestKeeping(Faulty):
    """The suite on `Keeping`."""

    make = Keeping


class TestSilent(Faulty):
    """The suite on `Silent`."""

    make = Silent


class TestShuffled(Faulty):
    """The suite on `Shuffled`."""

    make = Shuffled


class TestWithoutNulls(Faulty):
    """The suite on `WithoutNulls`."""

    make = WithoutNulls


class TestShortened(Faulty):
    """The suite on `Shortened`."""

    make = Shortened


class TestTruncating(Faulty):
    """The suite on `Truncating`."""

    make = Truncating


class TestReopening(Faulty):
    """The suite on `Reopening`."""

    make = Reopening


class TestExpiring(Faulty):
    """The suite on `Expiring`."""

    make = Expiring


class TestForgetful(Faulty):
    """The suite on `Forgetful`."""

    make = Forgetful


class TestConsuming(Faulty):
    """The suite on `Consuming`."""

    make = Consuming


class TestImpatient(Faulty):
    """The suite on `Impatient`."""

    make = Impatient


class TestAllOrNothing(Faulty):
    """The suite on `AllOrNothing`."""

    make = AllOrNothing


class TestLastAnswer(Faulty):
    """The suite on `LastAnswer`."""

    make = LastAnswer


class TestInsisting(Faulty):
    """The suite on `Insisting`."""

    make = Insisting


class TestClinging(Faulty):
    """The suite on `Clinging`."""

    make = Clinging


class TestRacing(Faulty):
    """The suite on `Racing`."""

    make = Racing


class TestMortal(Faulty):
    """The suite on `Mortal`."""

    make = Mortal


class TestUnfenced(Faulty):
    """The suite on `Unfenced`."""

    make = Unfenced


class TestCondemning(Faulty):
    """The suite on `Condemning`."""

    make = Condemning
