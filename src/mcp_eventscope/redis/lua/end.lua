-- End a session for all workers, and delete its keys in steps. Only the mark of its end remains.
--
-- KEYS     the session's record, `requests`, `sizes` and `index`; then the keys to delete, which the last call returned
-- ARGV[1]  ttl in whole seconds of the mark
-- ARGV[2]  the rows that the last call returned; ARGV[3] the rows that `index` had then
-- ARGV[4]  maximum number of rows to return
-- Returns  { the rows that `index` has; the first of them, see `commit.lua` }
--
-- The mark is set even if the record has expired, so that no worker adopts the session from its remaining keys. From then
-- on no script writes to the session, and `index` changes by this script only.

local session, index = KEYS[1], KEYS[4]
redis.call('UNLINK', unpack(KEYS, 1, 3))
redis.call('HSET', session, 'ended', '1')
redis.call('EXPIRE', session, ARGV[1])
if #KEYS > 4 then
  redis.call('UNLINK', unpack(KEYS, 5))
end
if redis.call('LLEN', index) == tonumber(ARGV[3]) then -- Else another worker ends the session, too.
  redis.call('LTRIM', index, ARGV[2], -1)
end
return { redis.call('LLEN', index), unpack(redis.call('LRANGE', index, 0, ARGV[4] - 1)) }
