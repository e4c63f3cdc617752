"""A pytest plugin: of an intended fault, the first failing example that Hypothesis generates will do.

To shrink and explain examples takes longer than to find them. A plugin, since the suite derives its settings from the
profile when it is imported, and `conftest.py` imports it.
"""

from hypothesis import Phase, settings

# Without a database: stores without the fault must not retry these examples.
settings.register_profile("any failure", phases=[Phase.generate], database=None)
settings.load_profile("any failure")


def pytest_collection_finish() -> None:
    """Fail if the suite has been imported before the profile was loaded."""
    from mcp_eventscope.testing import conformance, sessions  # noqa: PLC0415 - after the profile

    for suite in (conformance, sessions):
        assert suite.few_examples.phases == (Phase.generate,), f"{suite.__name__} shrinks its examples"
