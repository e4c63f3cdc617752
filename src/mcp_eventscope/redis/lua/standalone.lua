-- Read the runs of standalone streams and their last numbers.
--
-- KEYS     for each session: its `requests`
-- Returns  Redis's clock in microseconds; then for each session: runs and last numbers, with spaces between
--
-- An entry of another form is from another program, and left out.

local MOST_DIGITS = 16

local now = redis.call('TIME')
local lines = { string.format('%.0f', now[1] * 1000000 + now[2]) }
for i, key in ipairs(KEYS) do
  local runs, fields = {}, redis.call('HGETALL', key)
  for j = 1, #fields, 2 do
    local last = string.match(fields[j + 1], '^s (%d+)')
    if last and #last <= MOST_DIGITS and string.find(fields[j], '^%x+$') then
      runs[#runs + 1] = fields[j] .. ' ' .. last
    end
  end
  lines[#lines + 1] = table.concat(runs, ' ')
end
return lines
