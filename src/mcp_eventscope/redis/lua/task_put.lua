-- Create a task, add requests for input, or end it: by compare-and-set on its run and status.
--
-- KEYS[1]  the task; KEYS[2] its result
-- ARGV[1]  milliseconds until both expire; ARGV[2] the run; ARGV[3] "create", "keep", "ask" or "end"
-- ARGV[4]  the worker that ends it; ARGV[5] the result, or ""
-- ARGV[6]  the number of texts that follow of the whole record: fields and values with which a lost one is created again
-- ARGV[…]  those; then for "ask" keys and requests, for "end" fields and values, of which `status` is the first
-- Returns  "ok"; "fenced": it has another run or a final status, and nothing was written; "absent": it is lost, and no
--          whole record was given
--
-- A request is the field "r:" key until it is answered, its answer "a:" key. The latter stays, without the answer, when
-- the run has received it, so that a late repetition does not ask again. A key of another type in place of the task, or
-- of the result, is replaced.

local ttl, run, verb = tonumber(ARGV[1]), ARGV[2], ARGV[3]
local changes = 7 + tonumber(ARGV[6])
local known = redis.pcall('HMGET', KEYS[1], 'run', 'status', 'ender')
if known.err then
  if not string.find(known.err, 'WRONGTYPE', 1, true) then
    return known
  end
  redis.call('UNLINK', KEYS[1])
  known = {}
end
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000000 + time[2])
local open = known[2] == 'working' or known[2] == 'input_required'

if not known[1] then
  if changes == 7 then
    return 'absent'
  end
  redis.call('HSET', KEYS[1], 'updated', now, unpack(ARGV, 7, changes - 1))
elseif known[1] ~= run then
  return 'fenced'
elseif not open then
  local repeats = verb == 'end' and known[3] == ARGV[4] and known[2] == ARGV[changes + 1]
  return repeats and 'ok' or 'fenced'
end

if verb == 'ask' then
  for i = changes, #ARGV, 2 do
    if redis.call('HEXISTS', KEYS[1], 'a:' .. ARGV[i]) == 0 then
      if redis.call('HSET', KEYS[1], 'r:' .. ARGV[i], ARGV[i + 1]) == 1 then
        redis.call('HINCRBY', KEYS[1], 'asked', 1)
      end
    end
  end
  local asked = tonumber(redis.call('HGET', KEYS[1], 'asked') or '0')
  redis.call('HSET', KEYS[1], 'status', asked > 0 and 'input_required' or 'working', 'updated', now)
elseif verb == 'end' then
  if ARGV[5] ~= '' then
    redis.call('SET', KEYS[2], ARGV[5], 'PX', ttl)
  end
  redis.call('HSET', KEYS[1], 'ender', ARGV[4], 'updated', now, 'ended', now, unpack(ARGV, changes, #ARGV))
end
redis.call('PEXPIRE', KEYS[1], ttl)
return 'ok'
