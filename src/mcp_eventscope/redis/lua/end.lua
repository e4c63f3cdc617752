-- End a session for all workers.
--
-- KEYS[1]  {prefix}session
-- ARGV[1]  ttl in whole seconds, for which Redis remembers the end
-- Returns  1
--
-- The mark is set even if the record has expired, so that no worker adopts the session from its remaining keys.

redis.call('HSET', KEYS[1], 'ended', '1')
return redis.call('EXPIRE', KEYS[1], ARGV[1])
