-- End a session for all workers, and delete its keys in steps. Only the mark of its end remains.
--
-- KEYS     the session's record, `requests`, `sizes`, `index` and `deleting`; then the keys to delete, which the last
--          call returned
-- ARGV[1]  ttl in whole seconds of the mark
-- ARGV[2]  the rows that the last call returned; ARGV[3] the rows that `deleting` had then
-- ARGV[4]  maximum number of rows to return
-- Returns  { the rows that `deleting` has; the first of them, see `commit.lua` }
--
-- The mark is set even if the record has expired, so that no worker adopts the session from its remaining keys. From then
-- on no script writes to the session. `index` is renamed, because `commit.lua` recognizes by it a session that has not
-- ended.

local session, index, deleting = KEYS[1], KEYS[4], KEYS[5]
if redis.call('EXISTS', index) == 1 then
  redis.call('RENAME', index, deleting) -- First: if Redis refuses it, nothing has changed.
end
redis.call('UNLINK', unpack(KEYS, 1, 3))
redis.call('HSET', session, 'ended', '1')
redis.call('EXPIRE', session, ARGV[1])
if #KEYS > 5 then
  redis.call('UNLINK', unpack(KEYS, 6))
end
if redis.call('LLEN', deleting) == tonumber(ARGV[3]) then -- Else another worker ends the session, too.
  redis.call('LTRIM', deleting, ARGV[2], -1)
end
return { redis.call('LLEN', deleting), unpack(redis.call('LRANGE', deleting, 0, ARGV[4] - 1)) }
