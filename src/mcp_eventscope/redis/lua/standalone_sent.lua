-- Record that a message of a session's standalone stream was sent to a client.
--
-- KEYS     the session's record
-- ARGV     ttl in whole seconds of a record that is created here, 0 for no expiry
-- Returns  nil; does nothing to a session that has ended

if redis.call('HEXISTS', KEYS[1], 'ended') == 1 then
  return
end
redis.call('HSET', KEYS[1], 'standalone', '1')
if tonumber(ARGV[1]) > 0 and redis.call('TTL', KEYS[1]) == -1 then
  redis.call('EXPIRE', KEYS[1], ARGV[1])
end
