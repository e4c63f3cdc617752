-- Count tasks with a final status that no client has read.
--
-- KEYS     the tasks, of one worker
-- Returns  their number

local count = 0
for _, key in ipairs(KEYS) do
  local known = redis.pcall('HMGET', key, 'ended', 'seen') -- An error reply for a key of another type.
  if known[1] and not known[2] then
    count = count + 1
  end
end
return count
