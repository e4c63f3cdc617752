-- Read one bounded chunk of a run: the elements after a number.
--
-- KEYS     the run's list; the session's `requests`
-- ARGV     the run; the number after which to read; maximum number of elements; "1": return the elements one by one
-- Returns  { with spaces between: Redis's clock in microseconds, the number of the list's first element, of its last
--            (0 without a list), 1 if the last one ends the run, the number of elements, and the first element's
--            `traceparent`, if it has one; the run's entry in `requests`, or nil; the elements, in texts of up to
--            TEXT_ELEMENTS with newlines between, because clients parse many strings slowly }
--
-- Numbers are dense, but an element may stand for a range of lost events. So the index of an element is its number's
-- distance from the first number, or less.

local MOST_DIGITS = 16 -- An element with more digits is from another program.
local TEXT_ELEMENTS = 128 -- Lua copies and hashes a text several times, the more often the longer it is.
local MOST_BYTES = 288 * 1024 -- Elements have up to 4 KiB: many of those would block Redis for milliseconds.
local TRACEPARENT = '^[^\n]* t(%x%x%-%x+%-%x+%-%x%x)\n'

local list, run, cursor = KEYS[1], ARGV[1], tonumber(ARGV[2])

local function number_at(index)
  local digits = string.match(redis.call('LINDEX', list, index) or '', '^%d+')
  return digits and #digits <= MOST_DIGITS and tonumber(digits) or 0
end

local now = redis.call('TIME')
local clock = string.format('%.0f', now[1] * 1000000 + now[2])
local entry = redis.call('HGET', KEYS[2], run)
local first, last = number_at(0), number_at(-1)
local ended = string.find(redis.call('LINDEX', list, -1) or '', '^%d+ %d+ f') and 1 or 0
local texts, count = {}, 0
if last > cursor then
  local low, high = 0, math.max(0, math.min(cursor + 1 - first, redis.call('LLEN', list) - 1))
  if high > 0 and number_at(high) == cursor + 1 then
    low = high
  end
  while low < high do
    local middle = math.floor((low + high) / 2)
    if number_at(middle) > cursor then
      high = middle
    else
      low = middle + 1
    end
  end
  local most, bytes = tonumber(ARGV[3]), 0
  while count < most and bytes < MOST_BYTES do
    local elements = redis.call('LRANGE', list, low + count, low + math.min(count + TEXT_ELEMENTS, most) - 1)
    if #elements == 0 then
      break
    end
    local step = ARGV[4] == '1' and 1 or #elements
    for from = 1, #elements, step do
      local text = table.concat(elements, '\n', from, from + step - 1)
      texts[#texts + 1], bytes = text, bytes + #text
    end
    count = count + #elements
  end
end
local producer = string.match(redis.call('LINDEX', list, 0) or '', TRACEPARENT)
return {
  table.concat({ clock, string.format('%.0f', first), string.format('%.0f', last), ended, count, producer }, ' '),
  entry, texts,
}
