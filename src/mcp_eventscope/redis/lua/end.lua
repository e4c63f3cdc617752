-- End a session for all workers.
--
-- KEYS[1]  {prefix}session
-- ARGV[1]  ttl in whole seconds: how long it is remembered that it has ended
-- Returns  1
--
-- Made even where the record is gone: nobody may take the session over by what is left of it.

redis.call('HSET', KEYS[1], 'ended', '1')
return redis.call('EXPIRE', KEYS[1], ARGV[1])
