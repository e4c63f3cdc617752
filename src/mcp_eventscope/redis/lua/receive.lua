-- Read the messages of other workers. Those up to ARGV[1] have been handled, and are deleted.
--
-- KEYS[1]  {prefix}{workers}:inbox:{worker}
-- KEYS[2]  {prefix}{workers}:announcements
-- ARGV[1]  the id of the last handled entry of the inbox; ARGV[2] of the announcements
-- ARGV[3]  maximum number of entries of each
-- Returns  { 1 if entries of the inbox may be missing, else 0; microseconds since 1970; entries; entries },
--          each entry as { id, { "m", message, "delay", microseconds } }
--
-- The last handled entry is kept. Where it is missing, Redis has restored an older inbox, or another program has deleted
-- entries: some that were not handled may be missing, too, and the others may have smaller ids, if Redis's clock has
-- stepped back. So all are returned. An inbox that was opened again begins with an empty entry.
-- A key with an entry of another program whose id allows no further one is deleted.

local MOST_DIGITS = 16

local missing = 0
for _, key in ipairs(KEYS) do
  local last = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
  if last and #string.match(last[1], '^%d+') > MOST_DIGITS then
    redis.call('UNLINK', key)
    missing = 1
  end
end
local inbox = redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', ARGV[3] + 1)
if inbox[1] and inbox[1][1] == ARGV[1] then
  redis.call('XTRIM', KEYS[1], 'MINID', ARGV[1])
  table.remove(inbox, 1)
elseif ARGV[1] ~= '0-0' then
  inbox = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', ARGV[3])
  if inbox[1] and inbox[1][2][2] ~= '' then
    missing = 1
  end
end
local now = redis.call('TIME')
return { missing, now[1] * 1000000 + now[2], inbox, redis.call('XRANGE', KEYS[2], '(' .. ARGV[2], '+', 'COUNT', ARGV[3]) }
