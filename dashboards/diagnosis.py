"""The rows of the overview that tell why: resumes, and the store, each by rate, errors and duration."""

from dashboards import links, promql
from dashboards.board import STACKED
from dashboards.links import REDIS, RESUME, runbook, to
from dashboards.objective import HEADROOM, OBJECTIVE
from dashboards.panels import (
    ASIDE,
    BAD,
    CALM,
    HALVES,
    OUTCOMES,
    TROUBLE,
    WARN,
    Target,
    coloured,
    counter,
    gauge,
    lines,
    quantiles,
    says,
)
from mcp_eventscope.telemetry import catalog
from mcp_eventscope.telemetry.catalog_resumes import TTL_RATIO

RESUMES = (
    lines(
        21,
        "Share of resumes that failed",
        says(
            "Gaps, misses and errors, of all resumes that are counted.",
            normal=f"below the line, the budget of {1 - OBJECTIVE:.0%}. Single peaks with few resumes mean little.",
            otherwise="compare with the panel above: which colour grew? Follow it on the drill-down.",
        ),
        Target(promql.failing(), "failed"),
        Target(promql.failing(promql.OWED), "of those owed events"),
        unit="percentunit",
        most=0.05,
        steps=((None, CALM), (round(1 - OBJECTIVE, 4), BAD)),
        custom={"thresholdsStyle": {"mode": "dashed"}},
        overrides=coloured({"failed": "orange", "of those owed events": "yellow"}),
        links=(to("Resume drill-down", RESUME), runbook("EventscopeResumesFailing")),
    ),
    quantiles(
        22,
        "Seconds of a replay",
        catalog.REPLAY_DURATION,
        says(
            "How long a replay took, reading and sending; a client that left is not in it.",
            normal="half below 10 ms, 99 % below a second.",
            otherwise="large replays (drill-down, 'Events of a replay') or a slow Redis ('Seconds to store an event')? "
            "If neither: clients that take what is sent to them slowly. Its exemplars lead to traces.",
        ),
        labels={"outcome": ("resumed", "caught_up", "gap")},
        links=(to("Seconds of a replay", RESUME, 31), runbook("EventscopeReplaySlow")),
    ),
    lines(
        23,
        "How much of the TTL clients were away for",
        says(
            "The time between the last event that a client had and its return, as a share of the TTL: beyond 100 % "
            "what it missed is gone. Read off buckets, so it says at most. Empty where nothing expires.",
            normal=f"near 0; always below the line, where {HEADROOM:.0%} are left.",
            otherwise="set a longer TTL, if Redis has the memory (Redis dashboard); a longer session_idle_timeout too, "
            "for a session that has ended cannot be resumed at all.",
        ),
        Target(promql.quantile(0.99, TTL_RATIO), "99 %", exemplar=True),
        Target(promql.quantile(0.5, TTL_RATIO), "half", exemplar=True),
        overrides=HALVES,
        unit="percentunit",
        steps=((None, CALM), (1 - HEADROOM, BAD)),
        custom={"thresholdsStyle": {"mode": "dashed"}},
        links=(to("How long clients had been away", RESUME, 32), runbook("EventscopeTTLHeadroomLow")),
    ),
    gauge(
        24,
        "Streams that are followed",
        catalog.FOLLOWERS,
        says(
            "Resumed streams that are open now and wait for what is stored next.",
            normal="about as many as clients are connected: each has its standalone stream, and what it resumed.",
            otherwise="growing without more clients: connections that a proxy keeps open after its client has gone, or "
            "requests that never end. 'Streams, by how they ended' says which.",
        ),
        links=(to("Streams, by how they ended", RESUME, 34), runbook("EventscopeFollowersGrowing")),
    ),
    counter(
        25,
        "Events to followed streams",
        catalog.FOLLOWED_EVENTS,
        says(
            "Events delivered to resumed streams as they were stored, a second.",
            normal="as busy as the tools are.",
            otherwise="none, while events are stored and streams are followed: look at errors of 'follow' in 'Errors'.",
        ),
        links=(to("Streams that are followed, by worker", RESUME, 16),),
    ),
    lines(
        26,
        "Events that were owed and gone",
        says(
            "Missing: the index named them, and they had expired or been evicted. Corrupt: they could not be read.",
            normal="none.",
            otherwise="missing: is Redis evicting ('Keys evicted', Redis dashboard), or the TTL too short? Corrupt: "
            "something else writes under this prefix; the log event_store.replay_incomplete names the ids.",
        ),
        Target(promql.rate(catalog.MISSING_EVENTS), "missing"),
        Target(promql.rate(catalog.CORRUPT_EVENTS), "corrupt"),
        overrides=coloured({"missing": WARN, "corrupt": BAD}),
        links=(to("Redis, as workers see it", REDIS), runbook("EventscopeResumesFailing")),
    ),
)

STORE = (
    lines(
        31,
        "Stores, by how they ended",
        says(
            "Events, a second; those of sessions when Redis has acknowledged them. Refused: the request had been "
            "answered already. Of a third-party or root store, error: sent without an id, and cannot be resumed; "
            "deferred: likewise, and stored later.",
            normal="ok only; none while Redis is unreachable.",
            otherwise="fewer than 'Events accepted': 'Redis away, by worker', below. Error: 'Errors', beside, and the "
            "log event_store.store_failed. Refused: a worker was declared dead and went on.",
        ),
        Target(promql.rate(catalog.STORE_DURATION, "count", ("outcome",)), "{{outcome}}"),
        custom=STACKED,
        overrides=OUTCOMES,
        links=(runbook("EventscopeStoreErrors"),),
    ),
    quantiles(
        32,
        "Seconds to store an event",
        catalog.STORE_DURATION,
        says(
            "From accepting an event to Redis's acknowledgement. No message waits for it: see 'Wait for the store'.",
            normal="p50 below 10 ms in one data centre: events are collected for 5 ms; p99 below 25 ms.",
            otherwise="compare with 'Seconds of a batch' on the Redis dashboard: when that is short the worker itself "
            "is busy, when it is as long Redis or the network is.",
        ),
        labels={"outcome": "ok"},
        links=(to("Seconds of a batch", REDIS, 11), runbook("EventscopeStoreErrors")),
    ),
    counter(
        33,
        "Errors",
        catalog.ERRORS,
        says(
            "Operations on the store that failed, a second. Unavailable: Redis did not answer. Rejected: it refused.",
            normal="none.",
            otherwise="unavailable: 'Redis away'. Rejected: read the log, which has what Redis said (READONLY, OOM, "
            "NOPERM). A replay that needs Redis while it is unreachable counts, and waits.",
        ),
        "operation",
        "error_type",
        colour=TROUBLE,
        links=(to("Times that Redis went away, by reason", REDIS, 14), runbook("EventscopeStoreErrors")),
    ),
    quantiles(
        37,
        "Wait for the store",
        catalog.STORE_WAIT,
        says(
            "Seconds that the sender of a message waited for the store, which stores in the background.",
            normal="below 1 ms. A sender waits only while too much is not acknowledged, and at most 250 ms.",
            otherwise="Redis is slow ('Seconds of a batch'), or one session sends more than Redis takes.",
        ),
        labels={},
        links=(to("Seconds of a batch", REDIS, 11), runbook("EventscopeStoreErrors")),
    ),
    counter(
        38,
        "Events accepted",
        catalog.ACCEPTED_EVENTS,
        says(
            "Events of sessions, a second, that were given an id.",
            normal="as many as are stored, some milliseconds later.",
            otherwise="more than are stored: Redis is unreachable, and they are pending in memory.",
        ),
        links=(to("Memory", REDIS, 21),),
    ),
    counter(
        34,
        "Events stored, by kind",
        catalog.STORED_EVENTS,
        says(
            "What is stored, a second. A call has one priming event and one response (or error); what a tool says in "
            "between are notifications.",
            normal="responses keep up with priming events.",
            otherwise="priming events without responses: calls that hang, or whose worker was killed ('Requests left "
            "by their worker'). Many errors: the tools fail, not the store.",
        ),
        "kind",
        overrides=coloured({"error": WARN, "response": "green", "notification": "blue", "priming": ASIDE}),
        links=(to("Requests left by their worker", links.OVERVIEW, 52),),
    ),
    counter(
        35,
        "Bytes stored",
        catalog.STORED_BYTES,
        says(
            "Payload, a second. Times the TTL, it is what Redis holds, and some 175 bytes more for each event.",
            normal="as busy as the tools are.",
            otherwise="a tool has begun to say much more: is there memory for it (Redis dashboard)?",
        ),
        unit="Bps",
        links=(to("Memory", REDIS, 21),),
    ),
    counter(
        36,
        "Events stored, by worker",
        catalog.STORED_EVENTS,
        says(
            "How the load is spread.",
            normal="the workers are about equally busy.",
            otherwise="one has much more: sessions stay with the worker that began them, so this is few, busy clients "
            "or a balancer that prefers one. One has none: it is new, or is sent nothing.",
        ),
        "instance",
        links=(to("Each worker, in the time shown", RESUME, 11),),
    ),
)
