-- Read one bounded chunk of a stream: what was stored after a cursor.
--
-- KEYS[1]  {prefix}counter: the last event id given out
-- KEYS[2]  {prefix}event:{cursor}
-- KEYS[3]  {prefix}session: in a session, what is known of it
-- ARGV[1]  the prefix
-- ARGV[2]  the cursor, an event id
-- ARGV[3]  the most events to look at
-- ARGV[4]  payload bytes after which no further event is taken (the first one always is)
-- ARGV[5]  "1" in a session, where small events are texts
-- ARGV[6]  the stream id, which may be empty; left out: the one that the cursor's event names
-- Returns  { stream the cursor's event names or nil;
--            with spaces between: "1" if that event ended its stream, else "0"; "1" if the stream's index holds the
--            cursor, else "0"; last id given out or "0"; highest id trimmed or "0"; Redis's clock in microseconds; when
--            the session was recorded anew after Redis had lost it, by the same clock, or "0"; the cursor for the next
--            chunk, or "0" when this was the last;
--            oldest member of the index or "";
--            with spaces between: ids and the sizes of their events, or what is wrong ("missing" | "corrupt" |
--            "misplaced": the id may be anything, and comes as "%" and itself, percent-encoded);
--            the events, with newlines between: as the text that `append.lua` makes of a small one of a session, which
--            is the payload, a line with its marks, and a line with its stream; or, where "=" is in front of the size,
--            the payload alone, and where "@" and a W3C traceparent are behind, that is who produced it }
--
-- Nothing in a row makes the script fail: a row that cannot be read is a fact, not an error. It is all in few
-- texts because clients take long to take in many.

local DIGITS = 18 -- Of an event id, at most.
local TRACEPARENT = '^00%-' .. string.rep('%x', 32) .. '%-' .. string.rep('%x', 16) .. '%-%x%x$'
local ZERO, NINE = 48, 57 -- As bytes.

local prefix, cursor = ARGV[1], ARGV[2]
local most, budget = tonumber(ARGV[3]), tonumber(ARGV[4])
local pcall, format, byte = redis.pcall, string.format, string.byte

-- Numbers that Redis holds, as they are: "0" for what is none.
local function number(text)
  return type(text) == 'string' and string.match(text, '^%d+$') or '0'
end

local named, final = false, '0'
-- By MGET, to which a hash is nothing and no error: Redis counts errors, and shows them.
local text = ARGV[5] == '1' and redis.call('MGET', KEYS[2])[1]
if text then
  local line = string.find(text, '\n', 1, true) -- The first one: JSON has none.
  if line then
    final = string.sub(text, line + 1, line + 5) == 'final' and '1' or '0'
    named = string.match(text, '^[^\n]*\n(.*)$', line + 1) or false
  end
else
  local row = pcall('HMGET', KEYS[2], 'stream_id', 'final')
  if not row.err then
    named, final = row[1], row[2] == '1' and '1' or '0'
  end
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
local names = {}
for i = 1, #found, 2 do
  names[#names + 1] = prefix .. 'event:' .. found[i]
end
-- All that are small; what is none, and may be large, is looked at one by one.
local texts = ARGV[5] == '1' and #names > 0 and redis.call('MGET', unpack(names)) or {}
local rows, events, bytes, after = {}, {}, 0, '0'
for i = 1, #names do
  local id, score = found[2 * i - 1], found[2 * i]
  local event, wrong, size = texts[i], nil, nil
  if event then
    size = #event
  else
    local row = pcall('HMGET', names[i], 'stream_id', 'payload', 'traceparent')
    if not row.err and not row[1] and not row[2] then
      wrong = 'missing'
    elseif row.err or row[1] ~= stream or not row[2] then
      wrong = 'corrupt'
    else
      event = row[2]
      size = '=' .. #event
      -- Anybody may have written it: what is not as it should be would be taken for something else.
      if row[3] and string.find(row[3], TRACEPARENT) then
        size = size .. '@' .. row[3]
      end
    end
  end
  local first = byte(id) or ZERO
  if (id ~= score and id ~= format('%.0f', score)) or #id > DIGITS or first <= ZERO or first > NINE then
    -- No writer of this layout puts it there. It is no place to go on from: that could be back, or nowhere.
    wrong = 'misplaced'
    id = '%' .. string.gsub(id, '[^%w]', function(character)
      return format('%%%02X', byte(character))
    end)
  end
  if not wrong then
    if bytes > 0 and bytes + #event > budget then
      break
    end
    bytes = bytes + #event
    events[#events + 1] = event
  end
  rows[#rows + 1] = id
  rows[#rows + 1] = wrong or size
  after = score
end
if #found < 2 * most and #rows == #found then
  after = '0'
end

return {
  named, table.concat({ final, held, given, trimmed, clock, restored, after }, ' '), oldest,
  table.concat(rows, ' '), table.concat(events, '\n'),
}
