-- Keep the inbox of a worker, or open it. Other workers send nothing to an inbox that does not exist.
--
-- KEYS[1]  {prefix}{workers}:inbox:{worker}
-- KEYS[2]  {prefix}{workers}:announcements
-- ARGV[1]  milliseconds until the inbox of a dead worker expires
-- Returns  { the id of its first entry, which is no message, or "" if it was kept; the number of deleted keys }
--
-- A key of another type is deleted: no worker could read its messages until the key expires. So is one with an entry of
-- another program whose id allows no further one.

local MOST_DIGITS = 16

local deleted = 0
for _, key in ipairs(KEYS) do
  local rows = redis.pcall('XREVRANGE', key, '+', '-', 'COUNT', 1)
  if rows.err and string.find(rows.err, 'WRONGTYPE', 1, true) then
    deleted = deleted + redis.call('UNLINK', key)
  elseif rows[1] and #string.match(rows[1][1], '^%d+') > MOST_DIGITS then
    deleted = deleted + redis.call('UNLINK', key)
  end
end
if redis.call('PEXPIRE', KEYS[1], ARGV[1]) == 1 then
  return { '', deleted }
end
local opened = redis.call('XADD', KEYS[1], '*', 'm', '')
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return { opened, deleted }
