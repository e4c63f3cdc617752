-- Answer a request in place of its dead worker: from now on no event of its run is committed.
--
-- KEYS     the session's `requests`; the run's list
-- ARGV     the run; its expected entry; the entry with the answer; ttl in whole seconds, 0 for no expiry
-- Returns  1; or 0 if the entry has changed, and then nothing was written

if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
if tonumber(ARGV[4]) > 0 then
  redis.call('EXPIRE', KEYS[1], ARGV[4])
  redis.call('EXPIRE', KEYS[2], ARGV[4])
end
redis.pcall('PUBLISH', string.sub(KEYS[2], 1, #KEYS[2] - #ARGV[1] - 1), ARGV[1])
return 1
