-- Look at some of the keys of the database: how many are a store's, which of these will never expire, and what
-- its events weigh. Reads only.
--
-- KEYS     none: which keys there are is what is asked
-- ARGV[1]  the cursor of the walk; "0" begins one
-- ARGV[2]  the prefix of the store
-- ARGV[3]  the prefix as a pattern of SCAN
-- ARGV[4]  how many keys to look at, about
-- ARGV[5]  how many events to weigh, at most
-- Returns  the cursor to go on from ("0": all keys have been looked at), the keys under the prefix, the events
--          weighed, their bytes, and of those keys without TTL, by what they are: kind, number, kind, number, …

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
      -- Of a session: the list of a run, whose elements are its events.
      bytes = bytes + math.floor((redis.call('MEMORY', 'USAGE', key) or 0) / redis.call('LLEN', key))
      weighed = weighed + 1
    end
  end
end

local told = { reply[1], #reply[2], weighed, bytes }
for _, kind in ipairs(kinds) do
  told[#told + 1] = kind
  told[#told + 1] = lasting[kind]
end
return told
