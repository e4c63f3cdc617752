"""A guard in front of each script, as of servers that refuse keys which a script does not declare."""

import hashlib
import sys

import pytest

from mcp_eventscope.redis.scripts import Script

GUARD = """
local declared = {}
for _, key in ipairs(KEYS) do
  declared[key] = true
end
local without_keys = { TIME = true, PUBLISH = true }
local many_keys = { DEL = true, EXISTS = true, MGET = true, UNLINK = true }
local function guarded(real)
  return function(command, ...)
    for i = 1, many_keys[command] and select('#', ...) or without_keys[command] and 0 or 1 do
      local key = select(i, ...)
      if not declared[key] then
        error('undeclared key: ' .. command .. ' ' .. tostring(key))
      end
    end
    return real(command, ...)
  end
end
local redis = setmetatable({ call = guarded(redis.call), pcall = guarded(redis.pcall) }, { __index = redis })
"""
"""In front of a script: a call with a key that is not among KEYS is an error."""


def guard_scripts(monkeypatch: pytest.MonkeyPatch, *, but: str = "") -> None:
    """Let every script refuse a key that was not declared.

    Args:
        monkeypatch: Ends it with the test.
        but: A part of the text of scripts that are left alone.
    """
    modules = [module for name, module in [*sys.modules.items()] if name.startswith("mcp_eventscope.")]
    scripts = {each for module in modules for each in vars(module).values() if isinstance(each, Script)}
    assert len(scripts) > 20
    for script in scripts:
        if but and but in script._text:
            continue
        text = GUARD + script._text
        monkeypatch.setattr(script, "_text", text)
        monkeypatch.setattr(script, "_sha", hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())
