-- Keep the inbox of a worker, or open it. Other workers send nothing to an inbox that does not exist.
--
-- KEYS[1]  {prefix}{workers}:inbox:{worker}
-- KEYS[2]  {prefix}{workers}:announcements
-- ARGV[1]  milliseconds until the inbox of a dead worker expires
-- ARGV[2]  the id of the last handled entry of the inbox; ARGV[3] of the announcements
-- Returns  { the id of its first entry, which is no message, or "" if it was kept; the number of deleted keys;
--          1 if the inbox ends before its last handled entry, else 0; the same of the announcements }
--
-- A key of another type is deleted: no worker could read its messages until the key expires. So is one with an entry of
-- another program whose id allows no further one.
--
-- A stream that ends before its last handled entry was lost or restored: further entries may have smaller ids, if Redis's
-- clock has stepped back, and would not be read.

local MOST_DIGITS = 16

local function precedes(one, other)
  local time, sequence = string.match(one, '^(%d+)%-(%d+)$')
  local other_time, other_sequence = string.match(other, '^(%d+)%-(%d+)$')
  if time == other_time then
    time, other_time = sequence, other_sequence
  end
  if #time ~= #other_time then
    return #time < #other_time
  end
  return time < other_time
end

local deleted, short = 0, { 0, 0 }
for i, key in ipairs(KEYS) do
  local rows = redis.pcall('XREVRANGE', key, '+', '-', 'COUNT', 1)
  if rows.err and string.find(rows.err, 'WRONGTYPE', 1, true) then
    deleted = deleted + redis.call('UNLINK', key)
  elseif rows[1] and #string.match(rows[1][1], '^%d+') > MOST_DIGITS then
    deleted = deleted + redis.call('UNLINK', key)
  elseif precedes(rows[1] and rows[1][1] or '0-0', ARGV[i + 1]) then
    short[i] = 1
  end
end
if redis.call('PEXPIRE', KEYS[1], ARGV[1]) == 1 then
  return { '', deleted, short[1], short[2] }
end
local opened = redis.call('XADD', KEYS[1], '*', 'm', '')
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return { opened, deleted, short[1], short[2] }
