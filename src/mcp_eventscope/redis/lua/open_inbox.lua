-- Open the inbox of a worker. Other workers send nothing to an inbox that does not exist.
--
-- KEYS[1]  {prefix}{workers}:inbox:{worker}
-- ARGV[1]  milliseconds until the inbox of a dead worker expires
-- Returns  the id of its first entry, which is no message

local opened = redis.call('XADD', KEYS[1], '*', 'm', '')
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return opened
