-- Append events to the streams under one prefix: atomically, in order, in one round trip.
--
-- KEYS[1]  {prefix}counter: the last event id given out
-- ARGV[1]  the prefix; event, stream and trimmed keys are built from it, for the ids are made here
-- ARGV[2]  ttl in whole seconds; 0 keeps the keys for ever
-- ARGV[3…] three for each event: stream id, payload ("" for a priming event),
--          "1" when it is the response that ends its stream, else ""
-- Returns  the event ids given out, as decimal strings, in the order of the events
--
-- An id is the server's clock in microseconds, pushed past the last id given out: unique and
-- increasing even after the counter was lost, restored or rolled back. It fits a double exactly.

local LOOKED_AT_PER_END = 32

local prefix, ttl = ARGV[1], tonumber(ARGV[2])
local now = redis.call('TIME')
local clock = now[1] * 1000000 + now[2]
local last = tonumber(redis.call('GET', KEYS[1]) or '') or 0
if not (last >= 0 and last < 2 ^ 53) then
  last = 0 -- Nothing that was given out: past 2^53 one more is the same number, and ids would repeat.
end

local ids, streams, seen = {}, {}, {}
for i = 3, #ARGV, 3 do
  local stream, payload, final = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  last = math.max(clock, last + 1)
  local id = string.format('%.0f', last)
  local event = prefix .. 'event:' .. id
  -- First, for this is what can fail, on a key that is another's: then nothing of the event is left behind.
  redis.call('ZADD', prefix .. 'stream:' .. stream, id, id)
  if final == '1' then
    redis.call('HSET', event, 'stream_id', stream, 'payload', payload, 'final', '1')
  else
    redis.call('HSET', event, 'stream_id', stream, 'payload', payload)
  end
  if ttl > 0 then
    redis.call('EXPIRE', event, ttl)
  end
  if not seen[stream] then
    seen[stream] = true
    streams[#streams + 1] = stream
  end
  ids[#ids + 1] = id
end

-- The entries of an index whose events have expired. An entry goes only when its event is gone, for a
-- small id may be a living event of another writer of this layout, whose ids are no clocks. Both ends of
-- what may have expired are looked at: entries that live on at one end would shield all the others. What
-- went is remembered, so that a replay can tell a gap from a stream that never said more.
local function trim(stream)
  local index, trimmed = prefix .. 'stream:' .. stream, prefix .. 'trimmed:' .. stream
  local horizon = string.format('(%.0f', clock - ttl * 1000000)
  local highest = 0
  for _, ids in ipairs({
    redis.call('ZRANGEBYSCORE', index, '-inf', horizon, 'LIMIT', 0, LOOKED_AT_PER_END),
    redis.call('ZREVRANGEBYSCORE', index, horizon, '-inf', 'LIMIT', 0, LOOKED_AT_PER_END),
  }) do
    for _, id in ipairs(ids) do
      if redis.call('EXISTS', prefix .. 'event:' .. id) == 0 then
        redis.call('ZREM', index, id)
        highest = math.max(highest, tonumber(id) or 0)
      end
    end
  end
  if highest > 0 then
    local before = tonumber(redis.call('GET', trimmed) or '') or 0
    redis.call('SET', trimmed, string.format('%.0f', math.max(before, highest)), 'EX', ttl)
  end
end

if ttl > 0 then
  redis.call('SET', KEYS[1], string.format('%.0f', last), 'EX', ttl)
else
  redis.call('SET', KEYS[1], string.format('%.0f', last))
end
for _, stream in ipairs(streams) do
  if ttl > 0 then
    trim(stream)
    redis.call('EXPIRE', prefix .. 'stream:' .. stream, ttl)
  else
    redis.call('PERSIST', prefix .. 'stream:' .. stream)
    redis.call('PERSIST', prefix .. 'trimmed:' .. stream)
  end
end

return ids
