-- Write answers again that Redis may have lost, and announce whether their worker has more of them.
--
-- KEYS     {prefix}{state}:keys or {prefix}{state}:epoch; then for each answer {prefix}{state}:answer:{state}
-- ARGV     the announcement's name; milliseconds for which it is valid, 0 to withdraw it; then for each answer: the run;
--          its worker, "" without a lease; the digest of the answer; ttl in milliseconds; the outcome, "" while it runs
--
-- An answer that exists was not lost, or belongs to another run: it stands.

if ARGV[2] == '0' then
  redis.call('HDEL', KEYS[1], 'restoring:' .. ARGV[1])
elseif redis.call('EXISTS', KEYS[1]) == 1 then
  local time = redis.call('TIME')
  local ends = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000) + tonumber(ARGV[2])
  redis.call('HSET', KEYS[1], 'restoring:' .. ARGV[1], string.format('%.0f', ends))
end

for i = 2, #KEYS do
  local at = 3 + (i - 2) * 5
  local run, worker, answer, ttl, outcome = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  local found = redis.call('HMGET', KEYS[i], 'run', 'outcome')
  if not found[1] then
    redis.call('HSET', KEYS[i], 'run', run, 'worker', worker, 'answer', answer)
    redis.call('PEXPIRE', KEYS[i], ttl)
  end
  if outcome ~= '' and (not found[1] or found[1] == run and not found[2]) then
    redis.call('HSET', KEYS[i], 'outcome', outcome)
  end
end
