-- Name the server that uses a prefix, unless another one does.
--
-- KEYS[1]  {prefix}server
-- ARGV[1]  ttl in whole seconds; ARGV[2] the server
-- Returns  the server that uses the prefix

local server = redis.call('GET', KEYS[1])
if server and server ~= ARGV[2] then
  return server
end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[1])
return ARGV[2]
