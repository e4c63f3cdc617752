-- Read the last numbers of runs, for followers that poll.
--
-- KEYS     two for each run: its list, the session's `requests`
-- ARGV     the runs
-- Returns  two for each run: its last number; the first letter of its entry in `requests`, or ""

local states = {}
for i, run in ipairs(ARGV) do
  states[#states + 1] = string.match(redis.call('LINDEX', KEYS[2 * i - 1], -1) or '', '^%d+') or '0'
  states[#states + 1] = string.sub(redis.call('HGET', KEYS[2 * i], run) or '', 1, 1)
end
return states
