-- Read one bounded chunk of a stream of the root store: the events after a cursor.
--
-- KEYS[1]  {prefix}counter: the last assigned event id
-- KEYS[2]  {prefix}event:{cursor}
-- ARGV[1]  the prefix; the other keys are built from it, because the index names the events
-- ARGV[2]  the cursor, an event id
-- ARGV[3]  maximum number of events to return
-- ARGV[4]  payload bytes after which no further event is returned (the first one always is)
-- ARGV[5]  the stream id, which may be empty; omitted: the stream of the cursor's event
-- Returns  { the stream that the cursor's event names, or nil;
--            separated by spaces: "1" if that event ended its stream, else "0"; "1" if the stream's index holds the
--            cursor, else "0"; the last assigned id or "0"; the highest trimmed id or "0"; Redis's clock in
--            microseconds; the cursor for the next chunk, or "0" after the last chunk;
--            the oldest member of the index or "";
--            separated by spaces: ids and payload sizes, or the fault of the event ("missing" | "corrupt" |
--            "misplaced": the id may be any text, and is returned as "%" and the percent-encoded text); after a size
--            "@" and the W3C traceparent of the producer, if known;
--            the payloads, separated by newlines }
--
-- An unreadable event is reported and does not fail the script. The reply has few elements, because clients parse
-- many slowly.

local DIGITS = 18 -- Maximum number of digits of an event id.
local TRACEPARENT = '^00%-' .. string.rep('%x', 32) .. '%-' .. string.rep('%x', 16) .. '%-%x%x$'
local ZERO, NINE = 48, 57 -- As bytes.

local prefix, cursor = ARGV[1], ARGV[2]
local most, budget = tonumber(ARGV[3]), tonumber(ARGV[4])
local pcall, format, byte = redis.pcall, string.format, string.byte

-- Return the text of a stored number; "0" if it is not a number.
local function number(text)
  return type(text) == 'string' and string.match(text, '^%d+$') or '0'
end

local named, final = false, '0'
local row = pcall('HMGET', KEYS[2], 'stream_id', 'final')
if not row.err then
  named, final = row[1], row[2] == '1' and '1' or '0'
end

local stream = ARGV[5] or named
local given = number(redis.call('GET', KEYS[1]))
local now = redis.call('TIME')
local clock = format('%.0f', now[1] * 1000000 + now[2])
if not stream then
  return { false, table.concat({ '0', '0', given, '0', clock, '0' }, ' '), '', '', '' }
end

local index = prefix .. 'stream:' .. stream
local held = redis.call('ZSCORE', index, cursor) and '1' or '0'
local trimmed = number(redis.call('GET', prefix .. 'trimmed:' .. stream))
local oldest = redis.call('ZRANGE', index, 0, 0)[1] or ''

local found = redis.call('ZRANGEBYSCORE', index, '(' .. cursor, '+inf', 'WITHSCORES', 'LIMIT', 0, most)
local rows, payloads, bytes, after = {}, {}, 0, '0'
for i = 1, #found, 2 do
  local id, score = found[i], found[i + 1]
  local payload, wrong, size
  local event = pcall('HMGET', prefix .. 'event:' .. id, 'stream_id', 'payload', 'traceparent')
  if not event.err and not event[1] and not event[2] then
    wrong = 'missing'
  elseif event.err or event[1] ~= stream or not event[2] then
    wrong = 'corrupt'
  else
    payload = event[2]
    size = #payload
    -- Untrusted: another writer may have stored it, and only this form may enter the reply.
    if event[3] and string.find(event[3], TRACEPARENT) then
      size = size .. '@' .. event[3]
    end
  end
  local first = byte(id) or ZERO
  if (id ~= score and id ~= format('%.0f', score)) or #id > DIGITS or first <= ZERO or first > NINE then
    -- Not from a writer of this layout. It cannot be a cursor: reading would restart, or skip to the end.
    wrong = 'misplaced'
    id = '%' .. string.gsub(id, '[^%w]', function(character)
      return format('%%%02X', byte(character))
    end)
  end
  if not wrong then
    if bytes > 0 and bytes + #payload > budget then
      break
    end
    bytes = bytes + #payload
    payloads[#payloads + 1] = payload
  end
  rows[#rows + 1] = id
  rows[#rows + 1] = wrong or size
  after = score
end
if #found < 2 * most and #rows == #found then
  after = '0'
end

return {
  named, table.concat({ final, held, given, trimmed, clock, after }, ' '), oldest,
  table.concat(rows, ' '), table.concat(payloads, '\n'),
}
