-- Append events to the streams under one prefix: atomically, in order, in one round trip.
--
-- KEYS[1]  {prefix}counter: the last event id given out
-- KEYS[2]  {prefix}running: which worker runs the request of a stream; "!" once it was given up
-- ARGV[1]  the prefix; event, stream and trimmed keys are built from it, for the ids are made here
-- ARGV[2]  ttl in whole seconds; 0 keeps the keys for ever
-- ARGV[3]  the worker that says it; "" when nobody keeps track
-- ARGV[4…] three for each event: stream id, payload ("" for a priming event), and what it is to its stream:
--          "part", "final" (the response that ends it), "standalone" (the stream belongs to no request),
--          "late" (a response that was sent before, and may or may not have been stored),
--          or "orphaned" (the response in place of a worker that is gone, which ARGV[3] then names)
-- Returns  the event ids given out, as decimal strings, in the order of the events; "" for one that was
--          refused: its request was given up before, and has its response
--
-- Whoever follows a stream has subscribed to the channel that is called as its index, and is woken by the
-- name of the worker, whose own followers know already.
--
-- An id is the server's clock in microseconds, pushed past the last id given out: unique and
-- increasing even after the counter was lost, restored or rolled back. It fits a double exactly.

local LOOKED_AT_PER_END = 32

local prefix, ttl, worker = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local now = redis.call('TIME')
local clock = now[1] * 1000000 + now[2]
local last = tonumber(redis.call('GET', KEYS[1]) or '') or 0
if not (last >= 0 and last < 2 ^ 53) then
  last = 0 -- Nothing that was given out: past 2^53 one more is the same number, and ids would repeat.
end

-- Whether the last event of a stream is a response.
local function ended(stream)
  local id = redis.call('ZREVRANGE', prefix .. 'stream:' .. stream, 0, 0)[1]
  return id and redis.call('HGET', prefix .. 'event:' .. id, 'final') == '1'
end

-- Whether an event may be stored; and who runs the request of its stream, as of this event.
local function admit(stream, role)
  if role == 'standalone' or (worker == '' and role ~= 'orphaned') then
    return true
  end
  local runs = redis.call('HGET', KEYS[2], stream) or ''
  if role == 'orphaned' then
    if runs ~= worker then
      return false
    end
    redis.call('HSET', KEYS[2], stream, '!')
  elseif runs == '!' then
    return false
  elseif role == 'late' and runs ~= worker and (runs ~= '' or ended(stream)) then
    return false
  elseif role == 'final' or role == 'late' then
    redis.call('HDEL', KEYS[2], stream)
  elseif runs ~= worker then
    redis.call('HSET', KEYS[2], stream, worker)
  end
  return true
end

local ids, streams, seen = {}, {}, {}

local function append(stream, payload, role)
  last = math.max(clock, last + 1)
  local id = string.format('%.0f', last)
  local event = prefix .. 'event:' .. id
  -- First, for this is what can fail, on a key that is another's: then nothing of the event is left behind.
  redis.call('ZADD', prefix .. 'stream:' .. stream, id, id)
  if role == 'final' or role == 'late' or role == 'orphaned' then
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
  return id
end

for i = 4, #ARGV, 3 do
  local stream, payload, role = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  ids[#ids + 1] = admit(stream, role) and append(stream, payload, role) or ''
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

if #streams == 0 then
  return ids
elseif ttl > 0 then
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
  -- A user of Redis may lack the right to publish: who follows then finds it when he looks for himself.
  redis.pcall('PUBLISH', prefix .. 'stream:' .. stream, worker)
end
if ttl > 0 then
  -- Whoever said it, or gave it up: for a request that runs long, too.
  redis.call('EXPIRE', KEYS[2], ttl)
end

return ids
