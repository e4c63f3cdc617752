-- Read one bounded chunk of a stream: what was stored after a cursor.
--
-- KEYS[1]  {prefix}counter: the last event id given out
-- KEYS[2]  {prefix}event:{cursor}
-- ARGV[1]  the prefix
-- ARGV[2]  the cursor, an event id
-- ARGV[3]  the most events to look at
-- ARGV[4]  payload bytes after which no further event is taken (the first one always is)
-- ARGV[5]  the stream id, which may be empty; left out: the one that the cursor's event names
-- Returns  { stream the cursor's event names or nil, "1" if that event ended its stream,
--            "1" if the stream's index holds the cursor, last id given out or "", highest id trimmed or "",
--            oldest id in the index or "", Redis's clock in microseconds,
--            cursor for the next chunk or "" when this was the last,
--            rows: id, state ("ok" | "missing" | "corrupt" | "misplaced"), payload, and so on }
--
-- Nothing in a row makes the script fail: a row that cannot be read is a fact, not an error.

local prefix, cursor = ARGV[1], ARGV[2]
local most, budget = tonumber(ARGV[3]), tonumber(ARGV[4])

local named, final = false, ''
local row = redis.pcall('HMGET', KEYS[2], 'stream_id', 'final')
if not row.err then
  named, final = row[1], row[2] or ''
end

local stream = ARGV[5] or named
local given = redis.call('GET', KEYS[1]) or ''
local now = redis.call('TIME')
local clock = string.format('%.0f', now[1] * 1000000 + now[2])
if not stream then
  return { false, '', '', given, '', '', clock, '', {} }
end

local index = prefix .. 'stream:' .. stream
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
  if id ~= string.format('%.0f', found[i + 1]) then
    -- No writer of this layout puts it there. It is no place to go on from: that could be back, or nowhere.
    rows[#rows + 1] = 'misplaced'
    payload = ''
  elseif not event.err and not event[1] and not event[2] then
    rows[#rows + 1] = 'missing'
  elseif event.err or event[1] ~= stream or not event[2] then
    rows[#rows + 1] = 'corrupt'
    payload = ''
  else
    rows[#rows + 1] = 'ok'
  end
  rows[#rows + 1] = payload
  after = found[i + 1]
end
if #found < 2 * most and #rows * 2 == #found * 3 then
  after = ''
end

return { named, final, held, given, trimmed, oldest, clock, after, rows }
