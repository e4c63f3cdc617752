-- Read the runs of standalone streams and their last numbers.
--
-- KEYS     for each session: its `requests`
-- Returns  Redis's clock in microseconds; then for each session: runs and last numbers, with spaces between

local now = redis.call('TIME')
local lines = { string.format('%.0f', now[1] * 1000000 + now[2]) }
for i, key in ipairs(KEYS) do
  local runs, fields = {}, redis.call('HGETALL', key)
  for j = 1, #fields, 2 do
    local last = string.match(fields[j + 1], '^s (%d+)')
    if last then
      runs[#runs + 1] = fields[j] .. ' ' .. last
    end
  end
  lines[#lines + 1] = table.concat(runs, ' ')
end
return lines
