-- Try commands, each independently of the others, to find those that this Redis refuses.
--
-- KEYS:    the keys of the commands. The caller has them expire and removes them, also by commands that are tried.
-- ARGV:    for each command: the number of its words, then the words.
-- Returns: for each command that failed: its name, and the error.
local failed, at = {}, 1
while at <= #ARGV do
  local words = tonumber(ARGV[at])
  local reply = redis.pcall(unpack(ARGV, at + 1, at + words))
  if type(reply) == 'table' and reply.err then
    failed[#failed + 1] = ARGV[at + 1]
    failed[#failed + 1] = reply.err
  end
  at = at + words + 1
end
return failed
