-- Read one bounded chunk of a stream: what was stored after a cursor.
--
-- KEYS[1]  {prefix}counter: the last event id given out
-- KEYS[2]  {prefix}event:{cursor}
-- KEYS[3]  {prefix}session: in a session, what is known of it
-- ARGV[1]  the prefix
-- ARGV[2]  the cursor, an event id
-- ARGV[3]  the most events to look at
-- ARGV[4]  payload bytes after which no further event is taken (the first one always is)
-- ARGV[5]  of how many events it is told who produced them, at most
-- ARGV[6]  the stream id, which may be empty; left out: the one that the cursor's event names
-- Returns  { stream the cursor's event names or nil;
--            with spaces between: "1" if that event ended its stream, else "0"; "1" if the stream's index holds the
--            cursor, else "0"; last id given out or "0"; highest id trimmed or "0"; Redis's clock in microseconds; when
--            the session was recorded anew after Redis had lost it, by the same clock, or "0"; the cursor for the next
--            chunk, or "0" when this was the last;
--            oldest member of the index or "";
--            with spaces between: ids and sizes of the payloads, with "@" and who produced it behind, where that is
--            known (a W3C traceparent), or what is wrong ("missing" | "corrupt" |
--            "misplaced": the id may be anything, and comes as "%" and itself, percent-encoded);
--            the payloads, one after the other }
--
-- Nothing in a row makes the script fail: a row that cannot be read is a fact, not an error. It is all in few
-- texts because clients take long to take in many.

local DIGITS = 18 -- Of an event id, at most.
local TRACEPARENT = '^00%-' .. string.rep('%x', 32) .. '%-' .. string.rep('%x', 16) .. '%-%x%x$'

local prefix, cursor = ARGV[1], ARGV[2]
local most, budget, producers = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local pcall, format = redis.pcall, string.format

-- Numbers that Redis holds, as they are: "0" for what is none.
local function number(text)
  return type(text) == 'string' and string.match(text, '^%d+$') or '0'
end

local named, final = false, '0'
local row = pcall('HMGET', KEYS[2], 'stream_id', 'final')
if not row.err then
  named, final = row[1], row[2] == '1' and '1' or '0'
end

local stream = ARGV[6] or named
local given = number(redis.call('GET', KEYS[1]))
local now = redis.call('TIME')
local clock = format('%.0f', now[1] * 1000000 + now[2])
if not stream then
  return { false, table.concat({ '0', '0', given, '0', clock, '0', '0' }, ' '), '', '', '' }
end

local restored = named and '0' or number(pcall('HGET', KEYS[3], 'restored'))

local index = prefix .. 'stream:' .. stream
local held = redis.call('ZSCORE', index, cursor) and '1' or '0'
local trimmed = number(redis.call('GET', prefix .. 'trimmed:' .. stream))
local oldest = redis.call('ZRANGE', index, 0, 0)[1] or ''

local found = redis.call('ZRANGEBYSCORE', index, '(' .. cursor, '+inf', 'WITHSCORES', 'LIMIT', 0, most)
local events = prefix .. 'event:'
local rows, payloads, bytes, after = {}, {}, 0, '0'
for i = 1, #found, 2 do
  local id = found[i]
  local event = pcall('HMGET', events .. id, 'stream_id', 'payload', 'traceparent')
  local payload = (not event.err) and event[2] or ''
  if bytes > 0 and bytes + #payload > budget then
    break
  end
  bytes = bytes + #payload
  local size = #payload
  if (id ~= found[i + 1] and id ~= format('%.0f', found[i + 1])) or #id > DIGITS or not string.find(id, '^[1-9]') then
    -- No writer of this layout puts it there. It is no place to go on from: that could be back, or nowhere.
    size = 'misplaced'
    id = '%' .. string.gsub(id, '[^%w]', function(byte)
      return format('%%%02X', string.byte(byte))
    end)
  elseif not event.err and not event[1] and not event[2] then
    size = 'missing'
  elseif event.err or event[1] ~= stream or not event[2] then
    size = 'corrupt'
  else
    payloads[#payloads + 1] = payload
    -- Anybody may have written it: what is not as it should be would be taken for another row.
    if event[3] and size > 0 and producers > 0 and string.find(event[3], TRACEPARENT) then
      size = size .. '@' .. event[3]
      producers = producers - 1
    end
  end
  rows[#rows + 1] = id
  rows[#rows + 1] = size
  after = found[i + 1]
end
if #found < 2 * most and #rows == #found then
  after = '0'
end

return {
  named, table.concat({ final, held, given, trimmed, clock, restored, after }, ' '), oldest,
  table.concat(rows, ' '), table.concat(payloads),
}
