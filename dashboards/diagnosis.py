"""Panels of the overview about resumes and the store: rate, errors, duration."""

from dashboards import links, promql
from dashboards.board import STACKED
from dashboards.links import REDIS, RESUME, runbook, to
from dashboards.objective import HEADROOM, OBJECTIVE, REPLAY_SECONDS
from dashboards.panels import (
    ASIDE,
    BAD,
    CALM,
    DASHED,
    OUTCOMES,
    QUANTILES,
    WARN,
    Target,
    coloured,
    counter,
    describe,
    gauge,
    lines,
    quantiles,
)
from mcp_eventscope.telemetry import catalog
from mcp_eventscope.telemetry.catalog.resumes import RESUME_TTL_RATIO

RESUME_LATENCY = quantiles(
    22,
    "Resume latency",
    catalog.store.REPLAY_DURATION,
    describe(
        "Latency of a replay, reading and sending; without clients that disconnected. The line is the limit of the "
        "alert.",
        normal="p50 below 10 ms, p99 below 1 s.",
        otherwise="large replays ('Events per replay', drill-down), a slow Redis ('Store latency') or slow clients "
        "('Send duration')? Exemplars lead to traces.",
    ),
    labels={"outcome": ("resumed", "caught_up", "gap")},
    steps=((None, CALM), (REPLAY_SECONDS, BAD)),
    custom=DASHED,
    links=(to("Resume latency distribution", RESUME, 31), runbook("EventscopeReplaySlow")),
)

STORE_LATENCY = quantiles(
    32,
    "Store latency",
    catalog.store.STORE_DURATION,
    describe(
        "From accepting an event to the acknowledgement by Redis. Messages do not wait for it: see 'Store wait'.",
        normal="p50 below 10 ms within one data centre: events are collected for 5 ms; p99 below 25 ms.",
        otherwise="compare with 'Redis write latency' (Redis dashboard): if that is low, the worker is busy; if it is "
        "as high, Redis or the network is.",
    ),
    labels={"outcome": "ok"},
    links=(to("Redis write latency", REDIS, 11), runbook("EventscopeStoreErrors")),
)

RESUMES = (
    lines(
        21,
        "Resume error ratio",
        describe(
            "Gaps, misses and errors, as a share of all resumes, and of those to which events were due.",
            normal=f"below the line, the error budget of {1 - OBJECTIVE:.0%}. Single peaks with few resumes are noise.",
            otherwise="see 'Resume rate by outcome': which outcome grew? Follow it on the drill-down.",
        ),
        Target(promql.failing(), "all resumes"),
        Target(promql.failing(promql.OWED), "resumes with events due"),
        unit="percentunit",
        most=0.05,
        steps=((None, CALM), (round(1 - OBJECTIVE, 4), BAD)),
        custom=DASHED,
        overrides=coloured({"all resumes": "orange", "resumes with events due": "yellow"}),
        links=(to("Resume drill-down", RESUME), runbook("EventscopeResumesFailing")),
    ),
    lines(
        23,
        "TTL used at resume",
        describe(
            "Age of the last event that the client had, divided by the TTL. Above 100 % its events have expired. Upper "
            "bounds, from buckets. Empty without a TTL.",
            normal=f"near 0; always below the line, where {HEADROOM:.0%} of the TTL are left.",
            otherwise="raise the TTL if Redis has the memory (Redis dashboard), and session_idle_timeout with it: an "
            "ended session cannot be resumed.",
        ),
        Target(promql.quantile(0.99, RESUME_TTL_RATIO), "p99", exemplar=True),
        Target(promql.quantile(0.5, RESUME_TTL_RATIO), "p50", exemplar=True),
        overrides=QUANTILES,
        unit="percentunit",
        steps=((None, CALM), (1 - HEADROOM, BAD)),
        custom=DASHED,
        links=(to("Resume age distribution", RESUME, 32), runbook("EventscopeTTLHeadroomLow")),
    ),
    gauge(
        24,
        "Followed streams",
        catalog.store.STREAMS_FOLLOWED,
        describe(
            "Streams that are read from the store as events arrive: resumed calls and standalone streams.",
            normal="about the number of clients: each has its standalone stream, and any call it resumed.",
            otherwise="growing without more clients: a proxy keeps connections of departed clients open, or calls "
            "never end. See 'Follow rate by outcome'.",
        ),
        links=(to("Follow rate by outcome", RESUME, 34), runbook("EventscopeFollowersGrowing")),
    ),
    counter(
        25,
        "Follow delivery rate",
        catalog.store.EVENTS_FOLLOWED,
        describe(
            "Events delivered to followed streams as they were stored.",
            normal="proportional to the load of the tools.",
            otherwise="0 while events are stored and streams are followed: see 'Error rate' for the operation follow.",
        ),
        links=(to("Followed streams by worker", RESUME, 16),),
    ),
    lines(
        26,
        "Undeliverable events",
        describe(
            "Events due to a resuming client that could not be delivered. Missing: expired or evicted before the "
            "resume. Corrupt: could not be decoded.",
            normal="0.",
            otherwise="missing: Redis evicts ('Key eviction rate', Redis dashboard), or the TTL is too short. Corrupt: "
            "another application writes under this prefix; the log event_store.replay_incomplete has the ids.",
        ),
        Target(promql.rate(catalog.store.EVENTS_MISSING), "missing"),
        Target(promql.rate(catalog.store.EVENTS_CORRUPT), "corrupt"),
        overrides=coloured({"missing": WARN, "corrupt": BAD}),
        links=(to("Redis dashboard", REDIS), runbook("EventscopeResumesFailing")),
    ),
)

STORE = (
    lines(
        31,
        "Store rate by outcome",
        describe(
            "Events of sessions count when Redis acknowledges them. Refused: the request had been answered already. "
            "Third-party and root stores only: error, sent without an id; deferred, stored later.",
            normal="ok only. 0 while Redis is unavailable.",
            otherwise="below 'Accept rate': see 'Redis state by worker'. Error: see 'Error rate', and the log "
            "event_store.store_failed. Refused: a worker was declared dead and continued.",
        ),
        Target(promql.rate(catalog.store.STORE_DURATION, "count", ("outcome",)), "{{outcome}}"),
        custom=STACKED,
        overrides=OUTCOMES,
        links=(runbook("EventscopeStoreErrors"),),
    ),
    counter(
        33,
        "Error rate",
        catalog.store.ERRORS,
        describe(
            "Failed store operations. Unavailable: Redis did not answer. Rejected: Redis refused.",
            normal="0.",
            otherwise="unavailable: see 'Redis state by worker'. Rejected: the log has the reply of Redis (READONLY, "
            "OOM, NOPERM). A replay that finds Redis unavailable counts once, then waits.",
        ),
        "operation",
        "error_type",
        links=(to("Degradation rate by reason", REDIS, 14), runbook("EventscopeStoreErrors")),
    ),
    quantiles(
        37,
        "Store wait",
        catalog.store.STORE_WAIT,
        describe(
            "Time for which storing an event blocked the sender of the message. Events are stored in the background.",
            normal="below 1 ms. Senders block only while too many events are pending, and for at most 250 ms.",
            otherwise="Redis is slow ('Redis write latency'), or one session produces more than Redis can store.",
        ),
        labels={},
        links=(to("Redis write latency", REDIS, 11), runbook("EventscopeStoreErrors")),
    ),
    counter(
        38,
        "Accept rate",
        catalog.store.EVENTS_ACCEPTED,
        describe(
            "Events of sessions that received an id.",
            normal="equal to 'Store rate by message type', which lags by milliseconds.",
            otherwise="higher than that: Redis is unavailable, and events are pending in memory.",
        ),
        links=(to("Memory", REDIS, 21),),
    ),
    counter(
        34,
        "Store rate by message type",
        catalog.store.EVENTS_STORED,
        describe(
            "A call has one priming event and one response (or error); messages of the tool in between are "
            "notifications.",
            normal="as many responses as priming events.",
            otherwise="fewer responses: calls hang, or their worker was killed ('Orphaned request rate'). Many errors: "
            "the tools fail, not the store.",
        ),
        "message_type",
        overrides=coloured(
            {"error": WARN, "response": "green", "notification": "blue", "request": "purple", "priming": ASIDE}
        ),
        links=(to("Orphaned request rate", links.OVERVIEW, 52),),
    ),
    counter(
        35,
        "Stored payload",
        catalog.store.PAYLOAD_STORED_BYTES,
        describe(
            "Payload bytes per second. Multiplied by the TTL, plus about 175 bytes per event, this is the memory that "
            "Redis needs.",
            normal="proportional to the load of the tools.",
            otherwise="a tool sends much larger messages: has Redis enough memory ('Memory', Redis dashboard)?",
        ),
        unit="Bps",
        links=(to("Memory", REDIS, 21),),
    ),
    counter(
        36,
        "Store rate by worker",
        catalog.store.EVENTS_STORED,
        describe(
            "Distribution of the load.",
            normal="workers are about equally busy.",
            otherwise="one worker much busier: sessions stay with the worker that opened them, so a few busy clients "
            "or the load balancer are the cause. One idle: it is new, or receives no traffic.",
        ),
        "instance",
        links=(to("Workers", RESUME, 11),),
    ),
)
