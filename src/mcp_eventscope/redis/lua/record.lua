-- Record a session, before its client receives its id, so that another worker can adopt it.
--
-- KEYS[1]  {prefix}session
-- ARGV[1]  ttl in whole seconds
-- ARGV[2]  the owner; ARGV[3] the server; ARGV[4] the handshake
-- ARGV[5]  the field that names the calling worker, which serves the session
-- Sets     `since`, the time of Redis in microseconds, in a record that is new or was lost
-- Returns  "live"; or "ended", or "other" for a session of another owner or server, and then nothing was written

local row = redis.call('HMGET', KEYS[1], 'ended', 'owner', 'server')
if row[1] then
  return 'ended'
elseif row[2] and (row[2] ~= ARGV[2] or row[3] ~= ARGV[3]) then
  return 'other'
end
local now = redis.call('TIME')
redis.call('HSETNX', KEYS[1], 'since', string.format('%.0f', now[1] * 1000000 + now[2]))
redis.call('HSET', KEYS[1], 'owner', ARGV[2], 'server', ARGV[3], 'handshake', ARGV[4], ARGV[5], '')
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 'live'
