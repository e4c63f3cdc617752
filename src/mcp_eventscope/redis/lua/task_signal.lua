-- Ask to cancel a task, or answer its requests for input, on behalf of its owner. A final status is not changed.
--
-- KEYS[1]  the task
-- ARGV[1]  the owner; ARGV[2] the channel of its worker; ARGV[3] "cancel" or "answer"
-- ARGV[…]  for "answer": keys and answers. Those without an unanswered request are ignored.
-- Returns  1; 0 if the task is absent or belongs to another owner

local known = redis.pcall('HMGET', KEYS[1], 'owner', 'status')
if known.err and not string.find(known.err, 'WRONGTYPE', 1, true) then -- Of another type: the task is lost.
  return known
end
if known[1] ~= ARGV[1] then
  return 0
end
if known[2] ~= 'working' and known[2] ~= 'input_required' then
  return 1
end
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000000 + time[2])
if ARGV[3] == 'cancel' then
  redis.call('HSETNX', KEYS[1], 'cancel', now)
else
  local asked
  for i = 4, #ARGV, 2 do
    if redis.call('HDEL', KEYS[1], 'r:' .. ARGV[i]) == 1 then
      redis.call('HSET', KEYS[1], 'a:' .. ARGV[i], ARGV[i + 1])
      asked = redis.call('HINCRBY', KEYS[1], 'asked', -1)
    end
  end
  if not asked then
    return 1
  end
  redis.call('HSET', KEYS[1], 'status', asked > 0 and 'input_required' or 'working', 'updated', now)
end
-- The Redis user may lack the permission to publish: the worker polls, too.
redis.pcall('PUBLISH', ARGV[2], '')
return 1
