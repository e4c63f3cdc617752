-- The write script of commit 85fd5d3 without its comments: a sorted set per stream and a key per event.
-- KEYS     for each session: counter, running
-- ARGV     ttl, worker; for each session: prefix, "1", part number, floor, count, then stream, payload and role of each event
-- Returns  a line for each session: the id of its first event
local LONGEST_ROLE = 10
local SMALL = 4096
local LOOKED_AT_PER_END, RENEWALS_PER_TTL = 32, 64

local ttl, worker = tonumber(ARGV[1]), ARGV[2]
local mark = '#' .. worker
local now = redis.call('TIME')
local clock = now[1] * 1000000 + now[2]
local horizon = clock - ttl * 1000000
local when = ttl > 0 and string.format('%.0f', math.floor(clock / ttl / 1000000 * RENEWALS_PER_TTL)) or 'never'
local here = worker .. ':' .. when
local broken

local function whole(number)
  return string.format('%.0f', number)
end

local function attempt(...)
  local reply = redis.pcall(...)
  if type(reply) ~= 'table' or not reply.err then
    return reply
  end
  local code = string.match(reply.err, '^%-?(%u+)')
  if code ~= 'WRONGTYPE' and code ~= 'ERR' then
    broken = reply.err
  end
  return nil, string.gsub(reply.err, '[;\r\n]', ' ')
end

local function trim(prefix, stream)
  local index, trimmed = prefix .. 'stream:' .. stream, prefix .. 'trimmed:' .. stream
  local before = '(' .. whole(horizon)
  local highest = 0
  for _, ids in ipairs({
    redis.call('ZRANGEBYSCORE', index, '-inf', before, 'LIMIT', 0, LOOKED_AT_PER_END),
    redis.call('ZREVRANGEBYSCORE', index, before, '-inf', 'LIMIT', 0, LOOKED_AT_PER_END),
  }) do
    for _, id in ipairs(ids) do
      if redis.call('EXISTS', prefix .. 'event:' .. id) == 0 then
        redis.call('ZREM', index, id)
        highest = math.max(highest, tonumber(id) or 0)
      end
    end
  end
  if highest > 0 then
    local known = tonumber(redis.call('GET', trimmed) or '') or 0
    redis.call('SET', trimmed, whole(math.max(known, highest)), 'EX', ttl)
  end
end

local function renew(prefix, stream, index)
  if ttl > 0 then
    redis.call('EXPIRE', index, ttl)
  else
    redis.call('PERSIST', index)
    redis.call('PERSIST', prefix .. 'trimmed:' .. stream)
  end
end

local function trimmed(prefix, stream, index)
  local oldest = ttl > 0 and redis.call('ZRANGE', index, 0, 0, 'WITHSCORES')[2]
  if not oldest or tonumber(oldest) >= horizon then
    return true
  end
  trim(prefix, stream)
  return false
end

local function write(prefix, tracked, stream, id, payload, final, traceparent)
  local index, event = prefix .. 'stream:' .. stream, prefix .. 'event:' .. id
  local added, error = attempt('ZADD', index, id, id)
  if not added then
    return error
  end
  local stored
  if tracked and #payload + #stream <= SMALL then
    local text = payload .. '\n' .. (final and 'final' or '') .. (traceparent or '') .. '\n' .. stream
    if ttl > 0 then
      stored, error = attempt('SET', event, text, 'EX', ttl)
    else
      stored, error = attempt('SET', event, text)
    end
  else
    local fields = { 'stream_id', stream, 'payload', payload }
    if final then
      fields[5], fields[6] = 'final', '1'
    end
    if traceparent then
      fields[#fields + 1] = 'traceparent'
      fields[#fields + 1] = traceparent
    end
    stored, error = attempt('HSET', event, unpack(fields))
    if stored and ttl > 0 then
      redis.call('EXPIRE', event, ttl)
    end
  end
  if not stored then
    redis.call('ZREM', index, id)
    return error
  end
end

local function commit(counter, running, at, count)
  local prefix, tracked, number, floor = ARGV[at], ARGV[at + 1] == '1', ARGV[at + 2], tonumber(ARGV[at + 3])
  local events = at + 5

  local asked = { mark }
  if tracked then
    for i = events, events + 3 * count - 1, 3 do
      asked[#asked + 1] = ARGV[i]
    end
  end
  local known, error = attempt('HMGET', running, unpack(asked))
  if not known then
    return '!' .. error
  end
  local committed = known[1]
  local recent = false
  if committed then
    local before, at, reply = string.match(committed, '^(%d+):(%w*):(.*)$')
    if before == number then
      return reply
    elseif tonumber(before) > tonumber(number) then
      return '!late'
    end
    recent = at == when
  end
  local given
  given, error = attempt('GET', counter)
  if error then
    return '!' .. error
  end
  local last = tonumber(given or '') or 0
  if not (last >= 0 and last < 2 ^ 53) then
    last = 0
  end
  last = math.max(clock - 1, last, floor)

  local line, was, runs, streams = { whole(last + 1) }, {}, {}, {}
  local told = { mark, '' }
  for i = 0, count - 1 do
    local stream, payload, role = ARGV[events + 3 * i], ARGV[events + 3 * i + 1], ARGV[events + 3 * i + 2]
    last = last + 1
    local runner = runs[stream]
    if not runner then
      was[stream] = tracked and known[i + 2] or ''
      runner = was[stream] == here and worker or string.match(was[stream], '^[^:]*')
    end
    local traceparent
    if #role > LONGEST_ROLE then
      local behind = string.find(role, '@', 1, true)
      if behind then
        role, traceparent = string.sub(role, 1, behind - 1), string.sub(role, behind + 1)
      end
    end
    local lost = string.sub(role, 1, 5) == 'lost:'
    if lost then
      role = string.sub(role, 6)
    end
    local ending = role == 'final'
    local refused
    if string.sub(role, 1, 9) == 'orphaned:' then
      refused = runner ~= string.sub(role, 10)
      ending, runner = true, '!'
    elseif role ~= 'standalone' and tracked then
      refused = runner == '!'
      runner = ending and '' or worker
    end
    if refused then
      line[#line + 1] = i .. '=-'
    else
      error = nil
      if lost then
        local gap = prefix .. 'trimmed:' .. stream
        if ttl > 0 then
          error = select(2, attempt('SET', gap, whole(last), 'EX', ttl))
        else
          error = select(2, attempt('SET', gap, whole(last)))
        end
      end
      if not error and (not lost or ending) then
        error = write(prefix, tracked, stream, whole(last), payload, ending, traceparent)
      end
      if broken then
        return
      elseif error then
        line[#line + 1] = i .. '=!' .. error
      else
        if not runs[stream] then
          streams[#streams + 1] = stream
        end
        runs[stream] = runner
      end
    end
  end

  if #streams == 0 then
    return table.concat(line, ';')
  elseif ttl > 0 then
    redis.call('SET', counter, whole(last), 'EX', ttl)
  else
    redis.call('SET', counter, whole(last))
  end
  for i = 1, #streams do
    local stream = streams[i]
    local index, runs_it = prefix .. 'stream:' .. stream, runs[stream]
    renew(prefix, stream, index)
    if (was[stream] == here or trimmed(prefix, stream, index)) and runs_it == worker then
      runs_it = here
    end
    redis.pcall('PUBLISH', index, worker)
    if runs_it == '' and was[stream] ~= '' then
      redis.call('HDEL', running, stream)
    elseif runs_it ~= was[stream] then
      told[#told + 1] = stream
      told[#told + 1] = runs_it
    end
  end
  local reply = table.concat(line, ';')
  told[2] = number .. ':' .. when .. ':' .. reply
  redis.call('HSET', running, unpack(told))
  if ttl == 0 then
    redis.call('PERSIST', running)
  elseif not recent then
    redis.call('EXPIRE', running, ttl)
  end
  return reply
end

local lines, at = {}, 3
for i = 1, #KEYS, 2 do
  local count = tonumber(ARGV[at + 4])
  lines[#lines + 1] = commit(KEYS[i], KEYS[i + 1], at, count)
  if broken then
    return redis.error_reply(broken)
  end
  at = at + 5 + 3 * count
end
return table.concat(lines, '\n')
