-- Read the last numbers of runs, for followers that poll.
--
-- KEYS     two for each run: its list, the session's `requests`
-- ARGV     the runs
-- Returns  two for each run: its last number; the first letter of its entry in `requests`, or ""
--
-- A key of another type belongs to one session, and is as good as absent, so that the others are answered.

local function text_of(reply)
  if type(reply) == 'table' and not string.find(reply.err, 'WRONGTYPE', 1, true) then
    error(reply.err)
  end
  return type(reply) == 'string' and reply or ''
end

local states = {}
for i, run in ipairs(ARGV) do
  local last = string.match(text_of(redis.pcall('LINDEX', KEYS[2 * i - 1], -1)), '^%d+')
  states[#states + 1] = last and #last <= 16 and last or '0'
  states[#states + 1] = string.sub(text_of(redis.pcall('HGET', KEYS[2 * i], run)), 1, 1)
end
return states
