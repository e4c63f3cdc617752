-- Read the last event ids of streams of the root store.
--
-- KEYS     {prefix}stream:{stream}, one for each stream
-- Returns  for each the last event id, or ""

local last = {}
for i, index in ipairs(KEYS) do
  last[i] = redis.call('ZREVRANGE', index, 0, 0)[1] or ''
end
return last
