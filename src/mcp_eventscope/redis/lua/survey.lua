-- Examine a part of the keys of the database: how many belong to a store, how many of these never expire, and the size
-- of its events. Read-only.
--
-- KEYS     none, since the script finds the keys
-- ARGV[1]  the cursor of the walk; "0" begins one
-- ARGV[2]  the prefix of the store
-- ARGV[3]  the prefix as a pattern of SCAN
-- ARGV[4]  the approximate number of keys to examine
-- ARGV[5]  maximum number of events to weigh
-- Returns  the next cursor ("0": all keys were examined), the number of keys under the prefix, the number of weighed
--          events, their bytes, and the keys without TTL by kind: kind, number, kind, number, …

local prefix, most = ARGV[2], tonumber(ARGV[5])
local reply = redis.call('SCAN', ARGV[1], 'MATCH', ARGV[3], 'COUNT', ARGV[4])
local weighed, bytes, kinds, lasting = 0, 0, {}, {}

for _, key in ipairs(reply[2]) do
  -- "{session}:event:…" in a session, "event:…" in the root.
  local rest = string.sub(key, #prefix + 1)
  local kind = string.match(rest, '^{[^{}]*}:(%l+)') or string.match(rest, '^(%l+)') or ''
  if redis.call('PTTL', key) == -1 then
    if not lasting[kind] then
      lasting[kind] = 0
      kinds[#kinds + 1] = kind
    end
    lasting[kind] = lasting[kind] + 1
  end
  if weighed < most then
    if kind == 'event' then
      bytes = bytes + (redis.call('MEMORY', 'USAGE', key) or 0)
      weighed = weighed + 1
    elseif kind == 'stream' and redis.call('TYPE', key).ok == 'list' then
      -- A run of a session: the elements of the list are its events.
      bytes = bytes + math.floor((redis.call('MEMORY', 'USAGE', key) or 0) / redis.call('LLEN', key))
      weighed = weighed + 1
    end
  end
end

local result = { reply[1], #reply[2], weighed, bytes }
for _, kind in ipairs(kinds) do
  result[#result + 1] = kind
  result[#result + 1] = lasting[kind]
end
return result
