-- Say again who runs the requests of streams, where nobody is named: Redis has lost it.
--
-- KEYS[1]  {prefix}running
-- ARGV[1]  ttl in whole seconds; 0 keeps the key for ever
-- ARGV[2]  the worker
-- ARGV[3…] the stream ids
-- Returns  1
--
-- In one step with the TTL: who is interrupted between the two would leave a key that never expires.

for i = 3, #ARGV do
  redis.call('HSETNX', KEYS[1], ARGV[i], ARGV[2])
end
if tonumber(ARGV[1]) > 0 then
  redis.call('EXPIRE', KEYS[1], ARGV[1])
end
return 1
