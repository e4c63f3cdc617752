-- Renew sessions' records on behalf of their owners. A missing record is not created: it would have no owner.
--
-- KEYS     of each session: {prefix}session
-- ARGV[1]  ttl in whole seconds
-- ARGV[2]  "1": return the handshakes of live sessions, else ""
-- ARGV[3]  the field that names the calling worker, which serves the sessions
-- ARGV[4…] for each session: the caller's owner digest; the caller's server
-- Returns  for each session: "live" | "ended" | "other" (of another owner) | "other_server" | "absent"; its handshake

local reply = {}
for i, key in ipairs(KEYS) do
  local row = redis.pcall('HMGET', key, 'ended', 'owner', 'server')
  local state, handshake = 'live', false
  if row.err then -- Used by another program. The other sessions are renewed.
    state = 'other'
  elseif row[1] then
    state = 'ended'
  elseif not row[2] then
    state = 'absent'
  elseif row[3] ~= ARGV[2 * i + 3] then
    state = 'other_server'
  elseif row[2] ~= ARGV[2 * i + 2] then
    state = 'other'
  else
    redis.call('HSET', key, ARGV[3], '')
    redis.call('EXPIRE', key, ARGV[1])
    handshake = ARGV[2] == '1' and redis.call('HGET', key, 'handshake')
  end
  reply[#reply + 1] = state
  reply[#reply + 1] = handshake or ''
end
return reply
