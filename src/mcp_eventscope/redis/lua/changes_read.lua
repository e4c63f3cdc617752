-- Read the batches of changes behind a position, and check that Redis still has the past that the reader knows.
-- If Redis has no batch, or has lost some of this epoch, begin another epoch, which every reader notices.
--
-- KEYS[1]  {prefix}changes
-- ARGV[1]  a unique name for an epoch that begins
-- ARGV[2]  the epoch of the next two; '' if there is neither
-- ARGV[3]  number and ARGV[4] name of the last batch that was read; '' if none was
-- ARGV[5]  number and ARGV[6] name of the oldest batch that this worker has appended and not read; '' if none
-- ARGV[7]  maximum number of batches; ARGV[8] seconds until the key expires
-- Returns  { time in microseconds, 1 if batches were lost, first number, last number, its epoch, its name,
--            name of the batch at the position or '', batches behind the position }

local MOST_NUMBER = 2 ^ 53 -- A larger one is from another program, and would be the last.

local time = redis.call('TIME')

local function number_of(entry)
  return entry and tonumber(string.match(entry[1], '^%d+')) or 0
end

local function last_entry()
  return redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
end

local function name_of(entry)
  return entry and entry[2][4] or '' -- Another program's entry may have fewer fields.
end

local function name_at(number)
  return name_of(redis.call('XRANGE', KEYS[1], number .. '-0', number .. '-0')[1])
end

local last = last_entry()
if number_of(last) >= MOST_NUMBER then
  redis.call('UNLINK', KEYS[1])
  last = nil
end

local function is_lost(number, name)
  if number == '' then
    return false
  end
  local found = name_at(number)
  return found ~= '' and found ~= name or found == '' and tonumber(number) > number_of(last)
end

local lost = last and not string.find(last[1], '%-0$') and 1 or 0 -- Of another program: no reader gets past it.
if last and last[2][2] == ARGV[2] and (is_lost(ARGV[3], ARGV[4]) or is_lost(ARGV[5], ARGV[6])) then
  lost = 1
end
if lost == 1 or not last then
  -- Beyond every position, so that readers that wait for a later batch wake up.
  local number = math.max(time[1] * 1000 + math.floor(time[2] / 1000), number_of(last) + 1)
  number = math.max(number, (tonumber(ARGV[3]) or 0) + 1, (tonumber(ARGV[5]) or 0) + 1)
  redis.call('XADD', KEYS[1], string.format('%.0f-0', number), 'e', ARGV[1], 'n', ARGV[1], 'b', '[]')
  last = last_entry()
end
if redis.call('TTL', KEYS[1]) < ARGV[8] / 2 then
  redis.call('EXPIRE', KEYS[1], ARGV[8])
end
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
local behind = {}
if ARGV[3] ~= '' then
  behind = redis.call('XRANGE', KEYS[1], '(' .. ARGV[3] .. '-0', '+', 'COUNT', ARGV[7])
end
return {
  string.format('%.0f', time[1] * 1000000 + time[2]), lost,
  string.format('%.0f', number_of(first)), string.format('%.0f', number_of(last)), last[2][2], name_of(last),
  ARGV[3] == '' and '' or name_at(ARGV[3]), behind,
}
