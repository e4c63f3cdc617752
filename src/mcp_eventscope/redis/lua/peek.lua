-- How far streams have got, and who runs their requests: what followers that sleep have to know.
--
-- KEYS     two for each stream: {prefix}stream:{stream}, {prefix}running
-- ARGV     one for each stream: the stream id
-- Returns  two for each stream: the last event id or "", the worker or ""

local told = {}
for i, stream in ipairs(ARGV) do
  told[#told + 1] = redis.call('ZREVRANGE', KEYS[2 * i - 1], 0, 0)[1] or ''
  told[#told + 1] = string.match(redis.call('HGET', KEYS[2 * i], stream) or '', '^[^:]*')
end
return told
