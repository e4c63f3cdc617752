-- Read which workers serve sessions.
--
-- KEYS     of each session: {prefix}session
-- ARGV[1]  the prefix of the fields that name these workers
-- Returns  for each session: { "live" | "ended" | "absent" | "other" (its key has another type); microseconds since the
--          record was written first; the names of the workers }

local now = redis.call('TIME')
local clock = now[1] * 1000000 + now[2]
local reply = {}
for i, key in ipairs(KEYS) do
  local row = redis.pcall('HMGET', key, 'ended', 'owner', 'since')
  if row.err and not string.find(row.err, 'WRONGTYPE', 1, true) then
    return row
  end
  local found = { 'live', 0 }
  if row.err then
    found[1] = 'other'
  elseif row[1] then
    found[1] = 'ended'
  elseif not row[2] then
    found[1] = 'absent'
  else
    found[2] = clock - (tonumber(row[3] or '') or 0)
    for _, field in ipairs(redis.call('HKEYS', key)) do
      if string.sub(field, 1, #ARGV[1]) == ARGV[1] then
        found[#found + 1] = string.sub(field, #ARGV[1] + 1)
      end
    end
  end
  reply[i] = found
end
return reply
