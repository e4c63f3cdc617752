-- Renew and read a session's record on behalf of its owner. A missing record is not created: it would have no owner.
--
-- KEYS[1]  {prefix}session
-- ARGV[1]  ttl in whole seconds
-- ARGV[2]  the caller's owner digest
-- ARGV[3]  the field that names the calling worker, which serves the session
-- Returns  { "live" | "ended" | "other" | "absent", handshake }; "other": it belongs to another owner

local row = redis.call('HMGET', KEYS[1], 'ended', 'owner', 'handshake')
if row[1] then
  return { 'ended', '' }
elseif not row[2] then
  return { 'absent', '' }
elseif row[2] ~= ARGV[2] then
  return { 'other', '' }
end
redis.call('HSET', KEYS[1], ARGV[3], '')
redis.call('EXPIRE', KEYS[1], ARGV[1])
return { 'live', row[3] or '' }
