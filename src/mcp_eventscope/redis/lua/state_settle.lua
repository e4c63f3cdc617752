-- Record the outcome of an answer, or give its claim up. The first outcome of a run stands.
--
-- KEYS[1]  {prefix}{state}:answer:{state}
-- ARGV     the run; its outcome, "" to give up; the digest of its answer; ttl in milliseconds with which an entry that
--          does not exist is written, 0 to write none
-- Returns  the outcome that stands; "" if the run is not known

local found = redis.call('HMGET', KEYS[1], 'run', 'outcome')
if ARGV[2] == '' then
  if found[1] == ARGV[1] and not found[2] then
    redis.call('HDEL', KEYS[1], 'run', 'worker', 'answer')
  end
  if found[1] ~= ARGV[1] or not found[2] then
    -- The claim may still be on its way.
    redis.call('HSET', KEYS[1], 'released:' .. ARGV[1], '')
    redis.call('PEXPIRE', KEYS[1], ARGV[4])
  end
  return found[1] == ARGV[1] and found[2] or ''
end
if not found[1] then
  if ARGV[4] == '0' then
    return ''
  end
  redis.call('HSET', KEYS[1], 'run', ARGV[1], 'worker', '', 'answer', ARGV[3], 'outcome', ARGV[2])
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
  return ARGV[2]
end
if found[1] ~= ARGV[1] then
  return ''
end
if found[2] then
  return found[2]
end
redis.call('HSET', KEYS[1], 'outcome', ARGV[2])
return ARGV[2]
