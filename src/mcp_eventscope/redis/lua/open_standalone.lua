-- Record that a client has opened a session's standalone stream.
--
-- KEYS     the session's record
-- ARGV     ttl in whole seconds of a record that is created here, 0 for no expiry
-- Returns  1 the first time, else 0; 0 for a session that has ended

if redis.call('HEXISTS', KEYS[1], 'ended') == 1 then
  return 0
end
local first = redis.call('HSETNX', KEYS[1], 'standalone', '1')
if first == 1 and tonumber(ARGV[1]) > 0 and redis.call('TTL', KEYS[1]) == -1 then
  redis.call('EXPIRE', KEYS[1], ARGV[1])
end
return first
