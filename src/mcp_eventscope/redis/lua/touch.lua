-- Renew a session's record, and read it. A record that is not there is not made: it would have no owner.
--
-- KEYS[1]  {prefix}session
-- ARGV[1]  ttl in whole seconds
-- Returns  { "live" | "ended" | "absent", owner, handshake }

if redis.call('EXPIRE', KEYS[1], ARGV[1]) == 0 then
  return { 'absent', '', '' }
end
local row = redis.call('HMGET', KEYS[1], 'ended', 'owner', 'handshake')
return { row[1] and 'ended' or 'live', row[2] or '', row[3] or '' }
