-- Record a session, before its client receives its id, so that another worker can adopt it.
--
-- KEYS[1]  {prefix}session
-- ARGV[1]  ttl in whole seconds
-- ARGV[2]  the owner; ARGV[3] the handshake
-- ARGV[4]  the field that names the calling worker, which serves the session
-- Returns  "live"; or "ended", or "other" for a session of another owner, and then nothing was written

if redis.call('HEXISTS', KEYS[1], 'ended') == 1 then
  return 'ended'
end
local owner = redis.call('HGET', KEYS[1], 'owner')
if owner and owner ~= ARGV[2] then
  return 'other'
end
redis.call('HSET', KEYS[1], 'owner', ARGV[2], 'handshake', ARGV[3], ARGV[4], '')
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 'live'
