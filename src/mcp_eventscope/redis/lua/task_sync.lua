-- Publish the progress of running tasks of one worker, keep them alive, and read their signals.
--
-- KEYS     the tasks
-- ARGV[1]  milliseconds until they expire; "" does not renew them
-- ARGV[…]  for each task: its run; its progress; the number of awaited answers and their keys; the number of keys
--          that are no longer awaited, and these
-- Returns  for each task a list: "open", "fenced" (it has another run or a final status) or "absent"; the microseconds
--          since the client asked to cancel it, or ""; then a key and an answer for each answer

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local replies = {}
local a = 2
for i, key in ipairs(KEYS) do
  local run, message = ARGV[a], ARGV[a + 1]
  local awaited = a + 3
  local received = awaited + tonumber(ARGV[a + 2]) + 1
  local after = received + tonumber(ARGV[received - 1])
  local known = redis.pcall('HMGET', key, 'run', 'status', 'message', 'cancel')
  if known.err and not string.find(known.err, 'WRONGTYPE', 1, true) then -- Of another type: the task is lost.
    return known
  elseif not known[1] then
    replies[i] = { 'absent', '' }
  elseif known[1] ~= run or (known[2] ~= 'working' and known[2] ~= 'input_required') then
    replies[i] = { 'fenced', '' }
  else
    -- Damage to one task must not keep the others from their signals.
    local age = known[4] and math.max(now - (tonumber(known[4]) or now), 0) or ''
    local reply = { 'open', age }
    if message ~= (known[3] or '') then
      redis.call('HSET', key, 'message', message, 'updated', string.format('%.0f', now))
    end
    for j = received, after - 1 do
      if redis.call('HDEL', key, 'r:' .. ARGV[j]) == 1 then
        local asked = redis.call('HINCRBY', key, 'asked', -1)
        redis.call('HSET', key, 'a:' .. ARGV[j], '', 'status', asked > 0 and 'input_required' or 'working')
      elseif redis.call('HEXISTS', key, 'a:' .. ARGV[j]) == 1 then
        redis.call('HSET', key, 'a:' .. ARGV[j], '')
      end
    end
    for j = awaited, received - 2 do
      local answer = redis.call('HGET', key, 'a:' .. ARGV[j])
      if answer and answer ~= '' then
        reply[#reply + 1] = ARGV[j]
        reply[#reply + 1] = answer
      end
    end
    if ARGV[1] ~= '' then
      redis.call('PEXPIRE', key, ARGV[1])
    end
    replies[i] = reply
  end
  a = after
end
return replies
