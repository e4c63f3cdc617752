-- Forget the runs of dead workers in a standalone stream whose events have all expired.
--
-- KEYS[1]  the session's `requests`; then for each run: its list
-- ARGV     the runs
-- Returns  those that Redis no longer has

local forgotten = {}
for i, run in ipairs(ARGV) do
  if redis.call('EXISTS', KEYS[i + 1]) == 0 then
    redis.call('HDEL', KEYS[1], run)
    forgotten[#forgotten + 1] = run
  end
end
return forgotten
