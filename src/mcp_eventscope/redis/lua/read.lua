-- Read one bounded chunk of a stream: what was stored after a cursor.
--
-- KEYS[1]  {prefix}counter: the last event id given out
-- KEYS[2]  {prefix}event:{cursor}
-- ARGV[1]  the prefix
-- ARGV[2]  the cursor, an event id
-- ARGV[3]  the stream id, or "" to take the one that the cursor's event names
-- ARGV[4]  the most events to look at
-- ARGV[5]  payload bytes after which no further event is taken (the first one always is)
-- Returns  { stream the cursor's event names or "", "1" if that event ended its stream,
--            "1" if the stream's index holds the cursor, last id given out or "", highest id trimmed or "",
--            oldest id in the index or "", Redis's clock in microseconds,
--            cursor for the next chunk or "" when this was the last,
--            rows: id, state ("ok" | "missing" | "corrupt"), payload, and so on }
--
-- Nothing in a row makes the script fail: a row that cannot be read is a fact, not an error.

local prefix, cursor, stream = ARGV[1], ARGV[2], ARGV[3]
local most, budget = tonumber(ARGV[4]), tonumber(ARGV[5])

local named, final = '', ''
local row = redis.pcall('HMGET', KEYS[2], 'stream_id', 'final')
if not row.err then
  named, final = row[1] or '', row[2] or ''
end
if stream == '' then
  stream = named
end

local index = prefix .. 'stream:' .. stream
local given = redis.call('GET', KEYS[1]) or ''
local now = redis.call('TIME')
local clock = string.format('%.0f', now[1] * 1000000 + now[2])
if stream == '' then
  return { '', '', '', given, '', '', clock, '', {} }
end

local held = redis.call('ZSCORE', index, cursor) and '1' or ''
local trimmed = redis.call('GET', prefix .. 'trimmed:' .. stream) or ''
local oldest = redis.call('ZRANGE', index, 0, 0)[1] or ''

local found = redis.call('ZRANGEBYSCORE', index, '(' .. cursor, '+inf', 'WITHSCORES', 'LIMIT', 0, most)
local rows, bytes, after = {}, 0, ''
for i = 1, #found, 2 do
  local id = found[i]
  local event = redis.pcall('HMGET', prefix .. 'event:' .. id, 'stream_id', 'payload')
  local payload = (not event.err) and event[2] or ''
  if bytes > 0 and bytes + #payload > budget then
    break
  end
  bytes = bytes + #payload
  rows[#rows + 1] = id
  if event.err or (event[1] and event[1] ~= stream) or (event[1] and not event[2]) then
    rows[#rows + 1] = 'corrupt'
    payload = ''
  elseif not event[2] then
    rows[#rows + 1] = 'missing'
  else
    rows[#rows + 1] = 'ok'
  end
  rows[#rows + 1] = payload
  after = string.format('%.0f', found[i + 1])
end
if #found < 2 * most and #rows * 2 == #found * 3 then
  after = ''
end

return { named, final, held, given, trimmed, oldest, clock, after, rows }
