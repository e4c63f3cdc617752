-- Keep the inbox of a worker, or open it: other workers send nothing to an inbox that does not exist.
--
-- KEYS[1]  {prefix}{workers}:inbox:{worker}
-- ARGV[1]  milliseconds until the inbox of a dead worker expires
-- Returns  "" if the inbox exists; else the id of the entry with which it was opened, after which messages follow

if redis.call('PEXPIRE', KEYS[1], ARGV[1]) == 1 then
  return ''
end
local opened = redis.call('XADD', KEYS[1], '*', 'm', '')
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return opened
