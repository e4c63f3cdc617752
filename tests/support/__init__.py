"""Helpers that the tests share; tests/README.md lists the modules."""

import pkgutil
import sys

# Also here a failing assertion shows its values. The processes that tests start need no pytest.
if "pytest" in sys.modules:
    import pytest

    pytest.register_assert_rewrite(*(f"support.{module.name}" for module in pkgutil.iter_modules(__path__)))
