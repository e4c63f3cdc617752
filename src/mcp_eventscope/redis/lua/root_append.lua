-- Commit a batch of the root store: events of any number of streams, in order; a repeated batch is stored once.
--
-- KEYS[1]  {prefix}counter: the last assigned event id
-- KEYS[2]  {prefix}commit:{worker}: the last commit of this worker: the sequences of its first and last event, the
--          reply
-- ARGV[1]  the prefix; event, stream and trimmed keys are built from it, because the ids are assigned here
-- ARGV[2]  ttl in whole seconds; 0 keeps the keys forever
-- ARGV[3]  ttl of KEYS[2] in whole seconds
-- ARGV[4]  the sequence of the first event: a worker numbers its events densely, and sends them in order
-- ARGV[5]  the last event id that this worker received, or 0: ids increase even after Redis has lost the counter
-- ARGV[6…] three for each event: stream id; payload ("" for a priming event); marks: "t" if the stream is to be
--          trimmed, "f" for the response that ends the stream, "l" for an event that stands for lost ones (only a
--          response is stored, and a later replay reports a gap), then the W3C traceparent of the producer, if any
-- Returns  the id of the first event, whose successors are the ids of the others; and for some events ";" and the
--          index from 0, then "=" and an error if it was not stored, or "+" if its stream must be trimmed again.
--          For a batch that is already committed: the first sequence of that commit, ":", and its reply.
--          "!late" for a duplicate that a later batch has overtaken.
--          The reply is a status reply, which clients parse in one step where a bulk string takes two.
--          An error that does not concern a single key (OOM, READONLY, …) fails the whole call, and nothing was
--          written.
--
-- An id is the server's clock in microseconds, or the successor of the last id if that is larger. It fits a double
-- exactly. Published on {prefix}stored: the worker, then the streams, one on each line; without streams: any stream.

local FIRST, PER_EVENT = 6, 3
local CHECKED_PER_END = 32 -- Index entries.
local MOST = 2 ^ 53 -- Above this, a double cannot count in steps of one.
local NOTICE_BYTES = 16384 -- A longer notice omits the streams, and wakes all followers.

local call, pcall, format, find, match = redis.call, redis.pcall, string.format, string.find, string.match
local prefix, ttl, sequence = ARGV[1], ARGV[2], tonumber(ARGV[4])
local expires = ttl ~= '0'

local counter = call('GET', KEYS[1])
-- With an unchanged counter this batch cannot have been committed. MGET ignores keys of another type.
local committed = counter ~= ARGV[5] and call('MGET', KEYS[2])[1]
if committed then
  local first, ended, reply = match(committed, '^(%d+)-(%d+):(.*)$')
  if first and sequence <= tonumber(ended) then
    return { ok = sequence >= tonumber(first) and first .. ':' .. reply or '!late' }
  end
end

local now = call('TIME')
local clock = now[1] * 1000000 + now[2]
local last = tonumber(counter or '') or 0
if not (last >= 0 and last < MOST) then
  last = 0 -- The counter is damaged.
end
last = math.max(clock - 1, last, tonumber(ARGV[5]))
local stream_keys, event_keys = prefix .. 'stream:', prefix .. 'event:'
local id = format('%.0f', last + 1)
local reply = id
local streams, listed = {}, true -- The streams written to; whether a notice can list them.
local wrote = false

-- Remove the entries of an index whose events have expired. An entry is removed only if its event does not exist,
-- because another writer of this layout, whose ids are not times, may have a live event with a small id. Both ends of
-- the expired range are checked: live entries at one end would hide the others. The highest removed id is kept, so that
-- a replay can distinguish a gap from a short stream. Returns whether the index had entries that old.
local function trim(stream, index)
  local horizon = clock - ttl * 1000000
  local oldest = call('ZRANGE', index, 0, 0, 'WITHSCORES')[2]
  if not oldest or tonumber(oldest) >= horizon then
    return false
  end
  local before, highest = '(' .. format('%.0f', horizon), 0
  for _, ids in ipairs({
    call('ZRANGEBYSCORE', index, '-inf', before, 'LIMIT', 0, CHECKED_PER_END),
    call('ZREVRANGEBYSCORE', index, before, '-inf', 'LIMIT', 0, CHECKED_PER_END),
  }) do
    for _, old in ipairs(ids) do
      if call('EXISTS', event_keys .. old) == 0 then
        call('ZREM', index, old)
        highest = math.max(highest, tonumber(old) or 0)
      end
    end
  end
  if highest > 0 then
    local trimmed = prefix .. 'trimmed:' .. stream
    local earlier = tonumber(call('MGET', trimmed)[1] or '') or 0
    call('SET', trimmed, format('%.0f', math.max(earlier, highest)), 'EX', ttl)
  end
  return true
end

for at = FIRST, #ARGV, PER_EVENT do
  local stream, marks = ARGV[at], ARGV[at + 2]
  last = last + 1
  id = at == FIRST and id or format('%.0f', last)
  local index, event = stream_keys .. stream, event_keys .. id
  local failed, final, trims
  local stores = true
  if marks ~= '' then
    local flags = match(marks, '^%l*')
    trims, final = find(flags, 't'), find(flags, 'f')
    marks = string.sub(marks, #flags + 1)
    if find(flags, 'l') then
      stores = final
      local done = pcall('SET', prefix .. 'trimmed:' .. stream, id, unpack(expires and { 'EX', ttl } or {}))
      failed = done.err and done
    end
  end
  if stores and not failed then
    -- The index first: if another application uses its key, no part of the event is written.
    local done = pcall('ZADD', index, id, id)
    if type(done) == 'table' then
      failed = done
    else
      if marks == '' and not final then
        done = pcall('HSET', event, 'stream_id', stream, 'payload', ARGV[at + 1])
      else
        local more = final and { 'final', '1' } or {}
        if marks ~= '' then
          more[#more + 1], more[#more + 2] = 'traceparent', marks
        end
        done = pcall('HSET', event, 'stream_id', stream, 'payload', ARGV[at + 1], unpack(more))
      end
      if type(done) == 'table' then
        call('ZREM', index, id)
        failed = done
      elseif expires then
        call('EXPIRE', event, ttl)
      end
    end
  end
  if failed then
    local code = match(failed.err, '^%-?(%u+)')
    if code ~= 'WRONGTYPE' and code ~= 'ERR' then
      return failed -- Concerns all of Redis, not one key: it occurs before the first write.
    end
    reply = reply .. ';' .. (at - FIRST) / PER_EVENT .. '=' .. string.gsub(failed.err, '[;\r\n]', ' ')
  else
    wrote = true
    if not streams[stream] then
      streams[stream] = true
      streams[#streams + 1] = stream
      listed = listed and not find(stream, '\n', 1, true)
      -- With each batch, because Redis may have evicted the index, and this one be new.
      if expires then
        call('EXPIRE', index, ttl)
        if trims and stores and trim(stream, index) then
          reply = reply .. ';' .. (at - FIRST) / PER_EVENT .. '+'
        end
      else
        call('PERSIST', index)
        call('PERSIST', prefix .. 'trimmed:' .. stream)
      end
    end
  end
end

if wrote then -- Else a repetition has the same result.
  if expires then
    call('SET', KEYS[1], id, 'EX', ttl)
  else
    call('SET', KEYS[1], id)
  end
  local events = (#ARGV - FIRST + 1) / PER_EVENT
  local ends = events == 1 and ARGV[4] or format('%.0f', sequence + events - 1)
  call('SET', KEYS[2], ARGV[4] .. '-' .. ends .. ':' .. reply, 'EX', ARGV[3])
  local worker = string.sub(KEYS[2], #prefix + #'commit:' + 1)
  local list = listed and table.concat(streams, '\n')
  -- The Redis user may lack the permission to publish: followers then find the events by polling.
  pcall('PUBLISH', prefix .. 'stored', list and #list <= NOTICE_BYTES and worker .. '\n' .. list or worker)
end
return { ok = reply }
