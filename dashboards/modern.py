"""The dashboard of revision 2026-07-28: subscriptions, request states, and tasks."""

from dashboards import links, promql
from dashboards.board import STACKED, Dashboard
from dashboards.links import OVERVIEW, REDIS, runbook, to
from dashboards.objective import UNCOLLECTED
from dashboards.panels import (
    ASIDE,
    BAD,
    OUTCOMES,
    WARN,
    Row,
    Target,
    coloured,
    counter,
    describe,
    gauge,
    heatmap,
    lines,
    quantiles,
)
from mcp_eventscope.telemetry import catalog

_KEY_SOURCES = coloured({"secret": "green", "redis": "yellow", "process": BAD, "other": ASIDE})

_SUBSCRIPTIONS = (
    gauge(
        11,
        "Open subscription streams by worker",
        catalog.subscriptions.STREAMS_OPEN,
        describe(
            "Open subscriptions/listen streams.",
            normal="about one per connected client, evenly distributed.",
            otherwise="0 on a worker that serves clients: a proxy buffers or cuts streams. A drop to 0 on one worker: "
            "it was stopped, and its clients listen on others.",
        ),
        "instance",
        links=(to("Request rate by protocol version", OVERVIEW, 57),),
    ),
    lines(
        12,
        "Signal rate by path",
        describe(
            "Changes published by tools and acknowledged by Redis, and signals passed to streams, once per stream: of "
            "the same worker (local), of another one (remote), or in place of changes that may have been missed "
            "(repair).",
            normal="local and remote in proportion to the open streams of the workers.",
            otherwise="published without remote, on several workers with streams: do they share Redis and key_prefix? "
            "Repair: see 'Subscription gaps by reason'.",
        ),
        Target(promql.rate(catalog.subscriptions.SIGNALS_DELIVERED, "", ("path",)), "{{path}}"),
        Target(promql.rate(catalog.subscriptions.CHANGES_PUBLISHED), "published"),
        overrides=coloured({"local": "super-light-green", "remote": "green", "repair": WARN, "published": "blue"}),
        links=(to("Subscription gaps by reason", links.MODERN, 14), runbook("EventscopeChangesNotDelivered")),
    ),
    quantiles(
        13,
        "Signal lag",
        catalog.subscriptions.SIGNAL_LAG,
        describe(
            "From the publication of a change on one worker to its delivery to the streams of another one.",
            normal="p50 below 10 ms, p99 below 100 ms.",
            otherwise="as high as 'Publish latency': Redis is slow or unavailable. Higher: the worker that delivers "
            "is busy.",
        ),
        labels={},
        links=(to("Redis write latency", REDIS, 11), runbook("EventscopeChangesNotDelivered")),
    ),
    counter(
        14,
        "Subscription gaps by reason",
        catalog.subscriptions.GAPS,
        describe(
            "How often a worker may have missed changes of others. It then signals its open streams that everything "
            "changed, and clients refetch.",
            normal="0; lost if Redis was restarted empty on purpose.",
            otherwise="late: Redis was unavailable when the worker started. Lost, rolled_back: Redis lost data; set "
            "appendonly yes. Trimmed: the worker was frozen or cut off for too long. Damaged: another program writes "
            "under the prefix. Overflow: a worker had too many pending changes.",
        ),
        "reason",
        width=6,
        links=(runbook("EventscopeChangesNotDelivered"),),
    ),
    gauge(
        15,
        "Pending changes by worker",
        catalog.subscriptions.CHANGES_PENDING,
        describe(
            "Distinct changes that a worker published and Redis has not acknowledged.",
            normal="near 0.",
            otherwise="Redis is unavailable or refuses the write: see 'Publish failure rate by reason'. A worker that "
            "stops now loses them.",
        ),
        "instance",
        width=6,
        links=(to("Redis state by worker", OVERVIEW, 41), runbook("EventscopeChangesNotDelivered")),
    ),
    quantiles(
        16,
        "Publish latency",
        catalog.subscriptions.PUBLISH_DURATION,
        describe(
            "From the publication of the oldest change of a batch to the acknowledgement by Redis. Tools do not wait.",
            normal="p50 below 5 ms, p99 below 25 ms.",
            otherwise="compare with 'Redis write latency' (Redis dashboard): if that is low, the worker is busy. A "
            "peak as high as an outage was long is expected.",
        ),
        labels={},
        width=6,
        links=(to("Redis write latency", REDIS, 11),),
    ),
    counter(
        17,
        "Publish failure rate by reason",
        catalog.subscriptions.PUBLISH_FAILURES,
        describe(
            "Attempts to publish that failed and are repeated (unreachable, refused), and changes that were replaced "
            "by one of everything (overflow), lost (shutdown), or of an unknown type (unsupported).",
            normal="0.",
            otherwise="unreachable: see 'Redis state by worker'. Refused: the Redis user may not write the key "
            "changes, or Redis is full. Overflow: the outage is long. Shutdown: a worker stopped while Redis was "
            "unavailable; postpone deployments.",
        ),
        "reason",
        width=6,
        links=(to("Redis state by worker", OVERVIEW, 41), runbook("EventscopeChangesNotDelivered")),
    ),
)

_REQUEST_STATE = (
    lines(
        21,
        "Answers by outcome",
        describe(
            "Answers of clients to questions of tools: first uses by outcome, and repetitions that received the "
            "recorded outcome (repeated).",
            normal="completed; a few repeated where connections are cut.",
            otherwise="worker_lost: workers die while they process answers; clients learn that the answer may have "
            "taken effect. Failed: the tools. Too_large: repetitions receive an error instead of a result above 8 MiB.",
        ),
        Target(promql.rate(catalog.request_state.ANSWERS, "", ("outcome",)), "{{outcome}}"),
        Target(promql.rate(catalog.request_state.ANSWERS_REPEATED), "repeated"),
        custom=STACKED,
        overrides=OUTCOMES + coloured({"repeated": "blue"}),
        links=(to("Refused answers by reason", links.MODERN, 22), to("Task rate by outcome", links.MODERN, 32)),
    ),
    counter(
        22,
        "Refused answers by reason",
        catalog.request_state.STATES_REFUSED,
        describe(
            "Answers that had no effect. For most reasons clients only learn that their state is invalid or expired.",
            normal="0; a few expired where users take longer than ten minutes.",
            otherwise="unknown_key: workers have different secrets. Audience: workers have different names, or two "
            "services one secret. Unavailable: Redis. Not_running: the lifespan was not run. In_progress: tools take "
            "longer than wait_timeout. Malformed, binding, principal, other_answer: clients.",
        ),
        "reason",
        links=(to("Key source by worker", links.MODERN, 26), runbook("EventscopeAnswersRefused")),
    ),
    lines(
        23,
        "States sealed and opened",
        describe(
            "Questions sent to clients, by the source of the key that sealed their state, and states that clients "
            "returned with an answer.",
            normal="nearly as many opened as sealed.",
            otherwise="far fewer opened: users do not answer, or answers are refused ('Refused answers by reason').",
        ),
        Target(promql.rate(catalog.request_state.STATES_SEALED, "", ("source",)), "sealed, {{source}}"),
        Target(promql.rate(catalog.request_state.STATES_OPENED), "opened"),
        links=(to("Refused answers by reason", links.MODERN, 22),),
    ),
    quantiles(
        24,
        "Answer duration",
        catalog.request_state.ANSWER_DURATION,
        describe(
            "The first use of an answer: the rest of the tool, until its outcome was recorded.",
            normal="as long as tools run after their question.",
            otherwise="above 20 s: repetitions are refused as in_progress. Raise wait_timeout, or make the tool a "
            "task. In an outage answers wait for Redis.",
        ),
        labels={},
        width=12,
        links=(to("Redis write latency", REDIS, 11),),
    ),
    quantiles(
        25,
        "Wait of repeated answers",
        catalog.request_state.ANSWER_WAIT,
        describe(
            "Time for which a repeated answer waited for the outcome of its first use.",
            normal="milliseconds: the first use has ended. Empty without repetitions.",
            otherwise="seconds: clients give up before tools end. Raise the timeouts of clients and proxies.",
        ),
        labels={},
        width=12,
        links=(to("Answer duration", links.MODERN, 24),),
    ),
    lines(
        26,
        "Key source by worker",
        describe(
            "Which key a worker seals with: a secret of the operator, one generated in Redis, or one of its own "
            "(process).",
            normal="secret on all workers.",
            otherwise="redis: every reader of Redis can forge states; set EVENTSCOPE_REQUEST_STATE_KEYS. Process: "
            "Redis was unavailable at start, and other workers hold the answers to its states. Different sources: "
            "workers differ in configuration.",
        ),
        Target(
            f"{promql.highest(promql.series(catalog.request_state.KEY_SOURCES), ('instance', 'source'))} > 0",
            "{{instance}} {{source}}",
        ),
        unit="short",
        links=(runbook("EventscopeAnswersRefused"),),
    ),
    gauge(
        27,
        "Key age by worker",
        catalog.request_state.KEY_AGE,
        describe(
            "Age of the generated key with which a worker last sealed a state. Absent for secrets of the operator.",
            normal="below a day, the period of rotation.",
            otherwise="constant while states are sealed: the workers no longer share keys; is Redis available? Far "
            "above a day: no rotation.",
        ),
        "instance",
        unit="s",
        links=(to("Redis state by worker", OVERVIEW, 41),),
    ),
    lines(
        28,
        "Key changes by source",
        describe(
            "Changes of the key that seals, by the source of the new key.",
            normal="one per worker and day with generated keys, none with secrets.",
            otherwise="many: workers start again and again, or Redis loses its keys.",
        ),
        Target(promql.counted(catalog.request_state.KEY_CHANGES, ("source",)), "{{source}}"),
        unit="short",
        overrides=_KEY_SOURCES,
        links=(to("Refused answers by reason", links.MODERN, 22),),
    ),
)

_TASKS = (
    gauge(
        31,
        "Running tasks by status",
        catalog.tasks.TASKS_RUNNING,
        describe(
            "Tasks that workers run. Input_required: the tool waits for its client.",
            normal="proportional to the load, and below max_tasks (1,000) per process.",
            otherwise="working grows: tools are slower, or there are more calls; add workers. Input_required grows: "
            "clients do not answer ('Input wait').",
        ),
        "status",
        custom=STACKED,
        overrides=coloured({"working": "blue", "input_required": "yellow"}),
        links=(to("Task rate by outcome", links.MODERN, 32),),
    ),
    lines(
        32,
        "Task rate by outcome",
        describe(
            "Tasks created, and tasks that a worker no longer runs. Fenced: it was declared dead before. Discarded: "
            "the client disconnected before it had the id. Unsettled: the worker stopped before the end was stored.",
            normal="as many completed as created.",
            otherwise="failed: the log of the application. Fenced: a worker freezes, or its event loop is blocked. "
            "Unsettled: workers stop while Redis is unavailable. Discarded: a proxy cuts connections early.",
        ),
        Target(promql.rate(catalog.tasks.TASKS_ENDED, "", ("outcome",)), "{{outcome}}"),
        Target(promql.rate(catalog.tasks.TASKS_CREATED), "created"),
        overrides=OUTCOMES + coloured({"created": "blue"}),
        links=(to("Orphaned and uncollected tasks", links.MODERN, 34), runbook("EventscopeTasksOrphaned")),
    ),
    quantiles(
        33,
        "Task duration",
        catalog.tasks.TASKS_DURATION,
        describe(
            "From the creation of a task to its end, for tasks that completed or failed.",
            normal="as long as the tools run: minutes.",
            otherwise="p99 grows and p50 does not: a few slow arguments, or clients that answer late. Milliseconds: "
            "the tool need not be a task.",
        ),
        labels={"outcome": ("completed", "failed")},
        links=(to("Input wait", links.MODERN, 39),),
    ),
    lines(
        34,
        "Orphaned and uncollected tasks",
        describe(
            "Orphaned: a poll declared the task failed, because its worker was dead or no longer knew it. Uncollected: "
            "no poll had returned the result when nine tenths of its TTL were over.",
            normal=f"0 orphaned; uncollected below {UNCOLLECTED:.0%} of the results.",
            otherwise="orphaned without a deployment: workers crash (OOM killer?) or block their event loop. "
            "Uncollected: clients gave up or lost the ids, or return later than the TTL of the task store.",
        ),
        Target(promql.rate(catalog.tasks.TASKS_ORPHANED), "orphaned"),
        Target(promql.rate(catalog.tasks.TASKS_UNCOLLECTED), "uncollected"),
        overrides=coloured({"orphaned": BAD, "uncollected": WARN}),
        links=(runbook("EventscopeTasksOrphaned"), runbook("EventscopeTasksUncollected")),
    ),
    lines(
        35,
        "Task operation latency p99",
        describe(
            "Latency of the operations of clients on the task store, by operation.",
            normal="below 25 ms.",
            otherwise="as high as 'Redis write latency' (Redis dashboard): Redis is slow. Only get: large results.",
        ),
        Target(promql.quantile(0.99, catalog.tasks.OPERATION_DURATION, ("operation",)), "{{operation}}", exemplar=True),
        unit="s",
        most=None,
        links=(to("Redis write latency", REDIS, 11),),
    ),
    lines(
        36,
        "Task operation rate by outcome",
        describe(
            "Operations of clients on the task store: create, get (a poll), update (an answer), cancel.",
            normal="mostly get, ok: each client polls once per second.",
            otherwise="unknown: tasks have expired, Redis lost them, or clients try ids of others. Unavailable: Redis "
            "is unavailable, and clients retry. Error: the log task_store.failed.",
        ),
        Target(
            promql.rate(catalog.tasks.OPERATION_DURATION, "count", ("operation", "outcome")),
            "{{operation}} {{outcome}}",
        ),
        links=(to("Redis state by worker", OVERVIEW, 41),),
    ),
    heatmap(
        37,
        "Age of collected results",
        catalog.tasks.POLL_AGE,
        describe(
            "Final statuses by their age when the first poll returned them.",
            normal="seconds, the poll interval.",
            otherwise="a band near the TTL (an hour by default): clients return late, and results are about to be "
            "lost. Raise ttl= of the task store.",
        ),
        unit="s",
        links=(runbook("EventscopeTasksUncollected"),),
    ),
    quantiles(
        38,
        "Time to cancel",
        catalog.tasks.CANCEL_DURATION,
        describe(
            "From the request of a client to cancel a task to its end.",
            normal="below a second: at most sync_interval (0.5 s).",
            otherwise="longer: a tool shields itself from cancellation, its event loop is blocked, or Redis is slow.",
        ),
        labels={},
        links=(to("Redis write latency", REDIS, 11),),
    ),
    quantiles(
        39,
        "Input wait",
        catalog.tasks.INPUT_WAIT,
        describe(
            "Time for which a tool waited for input of its client.",
            normal="as long as users think.",
            otherwise="an hour: clients poll without answering; do they support elicitation within tasks?",
        ),
        labels={},
        links=(to("Running tasks by status", links.MODERN, 31),),
    ),
)

MODERN = Dashboard(
    links.MODERN,
    "MCP resumability: tasks and subscriptions",
    "Clients of revision 2026-07-28: are changes signalled, answers accepted, and results of tasks collected? Of "
    "mcp-eventscope.",
    (
        Row(10, "Subscriptions", _SUBSCRIPTIONS),
        Row(20, "Request state: questions to clients", _REQUEST_STATE),
        Row(30, "Tasks", _TASKS),
    ),
)
