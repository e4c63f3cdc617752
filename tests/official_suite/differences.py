"""Checks of the official suite that are expected to fail on two workers, each with the reason."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Failure:
    """A check that failed, or warned."""

    revision: str
    scenario: str
    check: str

    def __str__(self) -> str:
        """The failure in one line."""
        return f"{self.revision} {self.scenario}: {self.check}"


NO_TASKS = "the SDK's everything-server has no tasks; the suite does not score this extension"
_TASKS = {
    "tasks-capability-negotiation": (
        "sep-2663-tasks-methods-non-declaring",
        "tasks-extension-advertised",
        "tasks-per-request-meta-opt-in",
    ),
    "tasks-dispatch-and-envelope": (
        "sep-2663-durable-create-strong-consistency",
        "sep-2663-tasks-get-invalid-task-id-32602",
        "tasks-server-directed-creation-no-hint",
    ),
    "tasks-lifecycle": (
        "sep-2663-cancel-ack-empty-result",
        "sep-2663-result-type-task-on-create",
        "sep-2663-tasks-get-status-completed",
        "sep-2663-tasks-get-status-failed",
        "sep-2663-tasks-get-status-working",
        "sep-2663-tool-error-uses-completed-status",
        "tasks-cancel-terminal-idempotent-ack",
    ),
    "tasks-mrtr-composition": ("sep-2663-mrtr-synchronous-before-task-creation",),
    "tasks-mrtr-input": (
        "sep-2663-tasks-get-status-input-required",
        "tasks-mrtr-partial-fulfillment",
        "tasks-mrtr-tasks-update-resumes",
    ),
    "tasks-request-headers": (
        "sep-2663-routing-headers-accepted-on-tasks-get",
        "sep-2663-server-rejects-mismatched-mcp-name-on-tasks-get",
        "tasks-headers-tolerate-mcp-method-on-tools-call",
    ),
    "tasks-request-state-removal": ("tasks-request-state-removal-setup",),
    "tasks-required-task-error": ("sep-2663-server-returns-missing-capability-when-required",),
    "tasks-wire-fields": (
        "tasks-no-early-ttl-expiry",
        "tasks-no-related-task-meta-on-inlined-result",
        "tasks-wire-field-renames",
    ),
}
DIFFERENCES: dict[Failure, str] = {
    Failure("2026-07-28", scenario, check): NO_TASKS for scenario, checks in _TASKS.items() for check in checks
}
"""They fail with the SDK alone, too."""
