-- Delete the lease of a worker, unless the worker has renewed it since.
--
-- KEYS[1]  the lease
-- ARGV[1]  the value that the worker wrote last
-- Returns  1 if it was deleted, else 0

local held = tonumber(redis.call('GET', KEYS[1]))
if held and held <= tonumber(ARGV[1]) then
  return redis.call('DEL', KEYS[1])
end
return 0
