"""Keep the garbage collector out of the imports and the collection, whose objects all stay."""

import gc

import pytest

gc.disable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Leave the modules and tests out of later collections: each would look at a million of their objects."""
    gc.freeze()
    gc.enable()
