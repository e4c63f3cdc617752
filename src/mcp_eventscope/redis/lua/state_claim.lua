-- Claim the answer to a request state, unless it was answered before, or Redis has lost data.
--
-- KEYS     {prefix}{state}:answer:{state}; {prefix}{state}:keys or {prefix}{state}:epoch
-- ARGV     the run; its worker, "" without a lease; the digest of the answer; ttl in milliseconds; the epoch that the
--          caller knows; the number of the last call that it knows
-- Returns  the run that holds the answer; its worker; the digest of its answer; its outcome, "" while it runs; the number
--          of this call, or 0. They are those of the arguments if the caller holds it, also after a repeated call. Empty
--          if there is no such answer, and Redis may have lost it, or the run was given up

local found = redis.call('HMGET', KEYS[1], 'run', 'worker', 'answer', 'outcome')
if found[1] then
  return {found[1], found[2] or '', found[3] or '', found[4] or '', '0'}
end
if redis.call('HEXISTS', KEYS[1], 'released:' .. ARGV[1]) == 1 then
  return {}
end
local known = redis.call('HMGET', KEYS[2], 'epoch', 'calls')
if known[1] ~= ARGV[5] or tonumber(known[2] or 0) < tonumber(ARGV[6]) then
  return {}
end
redis.call('HSET', KEYS[1], 'run', ARGV[1], 'worker', ARGV[2], 'answer', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return {ARGV[1], ARGV[2], ARGV[3], '', string.format('%.0f', redis.call('HINCRBY', KEYS[2], 'calls', 1))}
