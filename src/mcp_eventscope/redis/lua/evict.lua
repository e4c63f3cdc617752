-- Evict the oldest events of some runs of a session, and change the entries that account for them.
--
-- KEYS     the session's `sizes`; its `index`; then for each run: its list, and the keys of the large payloads to delete
-- ARGV[1…] how many entries; for each: its name; its expected value; the value to set, "" to delete it
-- ARGV     then for each run: the number up to which to evict; the fate of the list: "t" keep its last element, "f"
--          replace that element by a mark of its loss, "d" delete the list; how many large payloads
-- Returns  { the bytes of all remaining entries, the number of evicted events }
--
-- A value begins with its bytes. An entry with an unexpected value was changed by another worker, and is kept.
-- The oldest runs are evicted first, and have the first rows of `index`. A row that is not among these is pruned later, by
-- its time.

local ROWS_SEARCHED = 1024

local sizes, index = KEYS[1], KEYS[2]
local deleted = {}

local function number_at(list, index)
  return tonumber(string.match(redis.call('LINDEX', list, index) or '', '^%d+') or '0')
end

local function bytes_of(value)
  return tonumber(string.match(value, '^%d+') or '0')
end

-- Count the elements up to a number: numbers are dense, but an element may stand for a range of lost events.
local function count_up_to(list, number)
  local low, high = 0, redis.call('LLEN', list)
  while low < high do
    local middle = math.floor((low + high) / 2)
    if number_at(list, middle) > number then
      high = middle
    else
      low = middle + 1
    end
  end
  return low
end

local function evict(list, number, fate)
  local length = redis.pcall('LLEN', list)
  if type(length) ~= 'number' or length == 0 then -- Expired, or used by another program.
    return 0
  end
  local count = count_up_to(list, number)
  if fate == 'd' and count == length then
    redis.call('UNLINK', list)
    deleted[string.sub(list, #sizes - #'sizes' + 1)] = true
    return 0 -- The events of such a run were counted before.
  end
  local trimmed = math.min(count, length - 1)
  redis.call('LTRIM', list, trimmed, -1)
  if fate == 'f' and count == length then
    local seq, time, marks = string.match(redis.call('LINDEX', list, -1), '^(%d+) (%d+)([^\n]*)\n')
    if seq and string.find(marks, ' f', 1, true) == 1 and not string.find(marks, ' l', 1, true) then
      redis.call('LSET', list, -1, seq .. ' ' .. time .. ' f l' .. seq .. '/evicted\n')
      trimmed = trimmed + 1
    end
  end
  return trimmed
end

local a, change, evicted = 2, 0, 0
for _ = 1, tonumber(ARGV[1]) do
  local name, old, new = ARGV[a], ARGV[a + 1], ARGV[a + 2]
  if redis.call('HGET', sizes, name) == old then
    change = change + bytes_of(new) - bytes_of(old)
    if new == '' then
      redis.call('HDEL', sizes, name)
    else
      redis.call('HSET', sizes, name, new)
    end
  end
  a = a + 3
end
local k = 3
while a <= #ARGV do
  local larges = tonumber(ARGV[a + 2])
  evicted = evicted + evict(KEYS[k], tonumber(ARGV[a]), ARGV[a + 1])
  for i = 1, larges do
    redis.call('UNLINK', KEYS[k + i])
    deleted[string.sub(KEYS[k + i], #sizes - #'sizes' + 1)] = true
  end
  k = k + 1 + larges
  a = a + 3
end
if next(deleted) then
  for _, row in ipairs(redis.call('LRANGE', index, 0, ROWS_SEARCHED - 1)) do
    if deleted[string.match(row, ' (.*)')] then
      redis.call('LREM', index, 1, row)
    end
  end
end
if change ~= 0 then -- Else the key may have expired, and would be created without TTL.
  redis.call('HINCRBY', sizes, 'total', change)
end
return { tonumber(redis.call('HGET', sizes, 'total') or '0') or 0, evicted }
