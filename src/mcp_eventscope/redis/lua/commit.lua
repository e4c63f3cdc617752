-- Commit events of any number of runs: each event once, in the order of its run's numbers.
--
-- KEYS     for each part: the run's list; the session's `index`; its `requests` and its record, unless the part is a
--          whole run; then one key for each large payload: of the part, or, where the part has no elements, of the run,
--          to renew its TTL
-- ARGV[1]  ttl in whole seconds; 0 keeps the keys without expiry
-- ARGV[2…] for each part: its header; unless it is a whole run: the run, its entry in `requests`, and the SHA-1 of an
--          element to remove from the end of the list, or ""; then its elements, and the large payloads of the part
--          The header has spaces between: how many elements, how many keys of large payloads, marks; unless it is a
--          whole run: the number of the first event, and the largest number that its worker has sent before.
--          Marks: "n" the part is a whole run, of which its worker has sent nothing before, and which none is known to
--          follow; "f" the last element ends the run; "s" the run belongs to a standalone stream; "r" the TTLs were
--          last renewed longer ago than a 64th of the TTL: renew them, and trim; "i" so was that of `index`; "-" none.
-- Returns  lines: Redis's clock in microseconds; then one for each part:
--            "k" last number, followed by "w" if another process follows the stream: committed
--            "b" last number: the list ends before the part's first event; nothing was written
--            "x": an answer was stored in place of this run's worker; nothing was written
--            "e": the session has ended; nothing was written
--            "o": the session is new or has ended, or the whole run was sent before; nothing was written: send it as an
--              ordinary part
--            "f" SHA-1: the list ends in an element that the worker has not sent; nothing was written
--            "!" error: Redis refuses the part; nothing was written
--          An error that concerns more than the part's keys (OOM, READONLY, …) is an error of the whole call.
--
-- An element is "number time marks…\npayload". Numbers already in the list are skipped, so a commit may be repeated.
-- So an element of another program at the end of the list would hide the events that follow. The worker has it removed
-- by its SHA-1: a copy of a commit may arrive after later ones, whose elements seem foreign to it.
-- A row of `index` is "time name": a list or a large payload (the key without the session's prefix), and a time from
-- which on it is kept for the TTL, or a 64th longer. So `end.lua` finds all keys of a session. The TTL of `index` is a
-- 32nd longer, since it is renewed less often than rows are added. A session that has ended has no `index`.

local TRIMMED_AT_ONCE = 64
local ROWS_AT_ONCE = 1000
local ROWS_PER_TRIM = 16

local ttl = tonumber(ARGV[1])
local now = redis.call('TIME')
local clock = now[1] * 1000000 + now[2]
local horizon = clock - ttl * 1000000
local index_horizon = horizon - ttl * 1000000 / 32
local ended = {}
local replies = { string.format('%.0f', clock) }
local broken

local function attempt(...)
  local reply = redis.pcall(...)
  if type(reply) ~= 'table' or not reply.err then
    return reply
  end
  local code = string.match(reply.err, '^%-?(%u+)')
  if code ~= 'WRONGTYPE' and code ~= 'ERR' then
    broken = reply.err
  end
  return nil, (string.gsub(reply.err, '[\r\n]', ' '))
end

local function number_of(element)
  return tonumber(string.match(element, '^%d+') or '0')
end

local function is_foreign(element, sent)
  local number = string.match(element, '^(%d+) %d')
  return not number or tonumber(number) > sent
end

local function trim(list)
  for _ = 1, TRIMMED_AT_ONCE do
    local time = string.match(redis.call('LINDEX', list, 0) or '', '^%d+ (%d+)')
    if not time or tonumber(time) >= horizon or redis.call('LLEN', list) < 2 then
      return
    end
    redis.call('LPOP', list)
  end
end

local function row_of(key, index)
  return replies[1] .. ' ' .. string.sub(key, #index - #'index' + 1)
end

local function renew_index(index)
  redis.call('EXPIRE', index, ttl + math.ceil(ttl / 32))
end

local function trim_index(index, length, added)
  if length % ROWS_PER_TRIM >= added then
    return
  end
  for _ = 1, TRIMMED_AT_ONCE do
    local time = string.match(redis.call('LINDEX', index, 0), '^%d+')
    if tonumber(time or '0') >= index_horizon then
      return
    end
    redis.call('LPOP', index)
  end
end

local function add_to_index(index, rows, renews)
  local length, error
  for first = 1, #rows, ROWS_AT_ONCE do
    length, error = attempt('RPUSH', index, unpack(rows, first, math.min(first + ROWS_AT_ONCE - 1, #rows)))
    if error then
      return error
    end
  end
  if ttl > 0 and (renews or length == #rows) then
    renew_index(index)
  end
  if ttl > 0 then
    trim_index(index, length, #rows)
  end
end

local function set_large(key, payload)
  if ttl > 0 then
    return select(2, attempt('SET', key, payload, 'EX', ttl))
  end
  return select(2, attempt('SET', key, payload))
end

local function wake_followers(list, run)
  -- The Redis user may lack the permission to publish: followers poll, too.
  local woken = redis.pcall('PUBLISH', string.sub(list, 1, #list - #run - 1), run)
  return type(woken) == 'number' and woken > 0 and 'w' or ''
end

local function commit(k, a, count, larges, marks, first, sent)
  local list, index, requests, session = KEYS[k], KEYS[k + 1], KEYS[k + 2], KEYS[k + 3]
  local run, entry, foreign = ARGV[a], ARGV[a + 1], ARGV[a + 2]
  local elements = a + 3
  local tail, known, error
  if ended[session] == nil then
    known, error = attempt('HEXISTS', session, 'ended')
    if error then
      return '!' .. error
    end
    ended[session] = known == 1
  end
  if ended[session] then
    return 'e'
  end
  tail, error = attempt('LINDEX', list, -1)
  if error then
    return '!' .. error
  end
  if tail and foreign ~= '' and foreign == redis.sha1hex(tail) then
    redis.call('LTRIM', list, 0, -2)
    tail = redis.call('LINDEX', list, -1)
  end
  if tail and is_foreign(tail, sent) then
    return 'f' .. redis.sha1hex(tail)
  end
  local last, over = tail and number_of(tail) or 0, tail and string.find(tail, '^%d+ %d+ f')
  if last < first - 1 then
    return 'b' .. string.format('%.0f', last)
  end
  known, error = attempt('HGET', requests, run)
  if error then
    return '!' .. error
  end
  if known and string.sub(known, 1, 1) == 'a' then
    return 'x'
  end
  local from = 0
  while from < count and number_of(ARGV[elements + from]) <= last do
    from = from + 1
  end
  local standalone, final = string.find(marks, 's', 1, true), string.find(marks, 'f', 1, true)
  local due = ttl > 0 and last > 0 and string.find(marks, 'r', 1, true)
  local reopens = not known and not final and not over and (from < count or count == 0) -- Else a late duplicate.
  local renewing = last == 0 or due or final or reopens or standalone and not known
  local woken = ''
  local rows = {}
  if due or last == 0 and from < count then
    rows[1] = row_of(list, index)
  end
  if from < count or due and count == 0 then
    for i = 1, larges do
      rows[#rows + 1] = row_of(KEYS[k + 3 + i], index)
    end
  end
  if #rows > 0 then
    error = add_to_index(index, rows, string.find(marks, 'i', 1, true))
    if error then
      return '!' .. error
    end
  end
  if from < count then
    for i = 0, larges - 1 do
      error = set_large(KEYS[k + 4 + i], ARGV[elements + count + i])
      if error then
        return '!' .. error
      end
    end
    if renewing and ttl > 0 and last > 0 then
      trim(list)
    end
    error = select(2, attempt('RPUSH', list, unpack(ARGV, elements + from, elements + count - 1)))
    if error then
      return '!' .. error
    end
    last = number_of(ARGV[elements + count - 1])
    woken = wake_followers(list, run)
  end
  if standalone then
    redis.call('HSET', requests, run, 's ' .. string.format('%.0f', last))
  elseif final then
    if known then
      redis.call('HDEL', requests, run)
    end
  elseif reopens then
    redis.call('HSET', requests, run, entry)
  end
  if renewing and ttl > 0 then
    redis.call('EXPIRE', list, ttl)
    if known or reopens or standalone or due then -- Else the commit has no entry: it is the whole run.
      redis.call('EXPIRE', requests, ttl)
    end
    for i = 1, count == 0 and larges or 0 do
      redis.call('EXPIRE', KEYS[k + 3 + i], ttl)
    end
  end
  return 'k' .. string.format('%.0f', last) .. woken
end

-- Commit a whole run, which most short calls are, with three commands; `commit` takes seven.
-- It wakes no followers. Its worker knows of none. One that has begun in the last milliseconds polls.
local function commit_whole(k, a, count, larges, marks)
  local list, index = KEYS[k], KEYS[k + 1]
  local rows = { row_of(list, index) }
  for i = 1, larges do
    rows[i + 1] = row_of(KEYS[k + 1 + i], index)
  end
  local indexed, length, error
  indexed, error = attempt('RPUSHX', index, unpack(rows))
  if error then
    return '!' .. error
  elseif indexed == 0 then
    return 'o'
  end
  length, error = attempt('RPUSH', list, unpack(ARGV, a, a + count - 1))
  if length ~= count then
    redis.call('LTRIM', index, 0, indexed - #rows - 1)
    if error then
      return '!' .. error
    end
    redis.call('LTRIM', list, 0, length - count - 1)
    return 'o'
  end
  for i = 0, larges - 1 do
    error = set_large(KEYS[k + 2 + i], ARGV[a + count + i])
    if error then
      redis.call('UNLINK', list, unpack(KEYS, k + 2, k + 1 + larges))
      redis.call('LTRIM', index, 0, indexed - #rows - 1)
      return '!' .. error
    end
  end
  if ttl > 0 then
    redis.call('EXPIRE', list, ttl)
    if string.find(marks, 'i', 1, true) then
      renew_index(index)
    end
    trim_index(index, indexed, #rows)
  end
  return 'k' .. string.match(ARGV[a + count - 1], '^%d+')
end

local k, a = 1, 2
while a <= #ARGV do
  local count, larges, marks, first, sent = string.match(ARGV[a], '^(%d+) (%d+) ([%a-]+) ?(%d*) ?(%d*)$')
  count, larges = tonumber(count), tonumber(larges)
  local payloads = count > 0 and larges or 0
  if string.sub(marks, 1, 1) == 'n' then
    replies[#replies + 1] = commit_whole(k, a + 1, count, larges, marks)
    k, a = k + 2 + larges, a + 1 + count + payloads
  else
    replies[#replies + 1] = commit(k, a + 1, count, larges, marks, tonumber(first), tonumber(sent))
    k, a = k + 4 + larges, a + 4 + count + payloads
  end
  if broken then
    return redis.error_reply(broken)
  end
end
return table.concat(replies, '\n')
