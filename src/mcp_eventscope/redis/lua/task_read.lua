-- Read a task for its owner. The result is read with its final status only, so that polls stay small.
--
-- KEYS[1]  the task; KEYS[2] its result
-- ARGV[1]  the owner
-- Returns  an empty list if it is absent or belongs to another owner; else the time in microseconds; the milliseconds
--          until it expires; 1 if this is the first read of its final status, else 0; its result, or ""; then its fields and values, without answers

-- With a key of another type in its place, the task, or its result, is lost.
local owner = redis.pcall('HGET', KEYS[1], 'owner')
if type(owner) == 'table' and not string.find(owner.err, 'WRONGTYPE', 1, true) then
  return owner
end
if owner ~= ARGV[1] then
  return {}
end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local first, result, status = 0, '', redis.call('HGET', KEYS[1], 'status')
if status ~= 'working' and status ~= 'input_required' then
  -- Redis may refuse writes, for example without memory. The read must not fail with that.
  local noted = redis.pcall('HSETNX', KEYS[1], 'seen', string.format('%.0f', now))
  first = noted == 1 and 1 or 0
  if status == 'completed' then
    result = redis.pcall('GET', KEYS[2])
    result = type(result) == 'string' and result or ''
  end
end
local reply = { now, redis.call('PTTL', KEYS[1]), first, result }
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  if string.sub(fields[i], 1, 2) ~= 'a:' then
    reply[#reply + 1] = fields[i]
    reply[#reply + 1] = fields[i + 1]
  end
end
return reply
