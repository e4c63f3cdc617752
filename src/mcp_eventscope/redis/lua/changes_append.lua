-- Append a batch of changes. Batches are numbered densely, so that a reader sees a missing one.
--
-- KEYS[1]  {prefix}changes
-- ARGV[1]  the batch's unique name; it names the epoch, too, if Redis has no batch
-- ARGV[2]  the batch
-- ARGV[3]  number of batches that are kept; ARGV[4] seconds until the key expires
-- Returns  { the batch's number, its epoch }

local MOST_NUMBER = 2 ^ 53 -- A larger one is from another program, and would be the last.

local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local number, epoch
if last and tonumber(string.match(last[1], '^%d+')) >= MOST_NUMBER then
  redis.call('UNLINK', KEYS[1])
  last = nil
end
if last then
  number, epoch = tonumber(string.match(last[1], '^%d+')) + 1, last[2][2]
else
  local time = redis.call('TIME')
  number, epoch = time[1] * 1000 + math.floor(time[2] / 1000), ARGV[1]
end
number = string.format('%.0f', number)
redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[3], number .. '-0', 'e', epoch, 'n', ARGV[1], 'b', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[4])
return { number, epoch }
