-- Add an entry to the accounts of a session, once, so that a call may be repeated.
--
-- KEYS     the session's `sizes`; the session's record
-- ARGV     ttl in whole seconds, 0 for no expiry; the entry's name; its bytes; its value
-- Returns  the bytes of all entries; 0 for a session that has ended, whose accounts were deleted

if redis.call('HEXISTS', KEYS[2], 'ended') == 1 then
  return 0
end
if redis.call('HSETNX', KEYS[1], ARGV[2], ARGV[4]) == 1 then
  redis.call('HINCRBY', KEYS[1], 'total', ARGV[3])
end
if tonumber(ARGV[1]) > 0 then
  redis.call('EXPIRE', KEYS[1], ARGV[1])
end
return tonumber(redis.call('HGET', KEYS[1], 'total') or '0') or 0
