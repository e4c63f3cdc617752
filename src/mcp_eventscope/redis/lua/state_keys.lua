-- Report and read the generated keys that seal request states: create the first one, rotate, and drop unused ones.
-- Detect lost data, and announce that the caller writes its answers again.
--
-- KEYS[1]  {prefix}{state}:keys, or {prefix}{state}:epoch where no keys are generated
-- ARGV     microseconds that a key is kept after its last use; its lifetime, in microseconds; a fresh key, or "" to
--          generate none; a fresh epoch; the hash's ttl in milliseconds; the epoch that the caller knows, or ""; the
--          number of the last call that it knows; the name of its announcement; milliseconds for which that is valid;
--          then for each key that the caller knows, its own sealing key first: the key, its creation in microseconds,
--          and the microseconds since its last use
-- Returns  Redis's time in microseconds; the epoch, which changes when the hash was lost; the number of this call in the
--          epoch, which rises unless Redis was rolled back; "1" if data was lost; milliseconds until the announcements
--          of other callers end; the sealing key, or ""; then for each key: the key, its creation, and its last use

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local kept, lifetime, fresh = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
-- Workers learn a new key within this time. One that cannot reach Redis for longer reports its use later.
local GRACE = 60000000
local FIRST_KEY = 10
local KEY_DIGITS, MOST_DIGITS, MOST_CALLS = 64, 17, 2 ^ 52

local keys, epoch, current, others_restore = {}, false, false, 0
local milliseconds = math.floor(now / 1000)
local announcement = 'restoring:' .. ARGV[8]
local stored = redis.call('HGETALL', KEYS[1])
for i = 1, #stored, 2 do
  local field, value = stored[i], stored[i + 1]
  if field == 'epoch' then
    epoch = string.find(value, '^[%w_-]+$') and value -- Else damaged: no caller could return it as it is.
  elseif field == 'current' then
    current = value
  elseif string.sub(field, 1, 10) == 'restoring:' then
    local left = math.min(tonumber(ARGV[9]), (tonumber(value) or 0) - milliseconds)
    if left <= 0 then
      redis.call('HDEL', KEYS[1], field)
    elseif field ~= announcement then
      others_restore = math.max(others_restore, left)
    end
  elseif #field == KEY_DIGITS and string.find(field, '^%x+$') then -- Else from another program.
    local created, used = string.match(value, '^(%d+) (%d+)$')
    if created and #created <= MOST_DIGITS and #used <= MOST_DIGITS then
      keys[field] = {tonumber(created), tonumber(used)}
    end
  end
end

if not epoch then
  epoch = ARGV[4]
  redis.call('HSET', KEYS[1], 'epoch', epoch)
end

local function write(key)
  redis.call('HSET', KEYS[1], key, string.format('%.0f %.0f', keys[key][1], keys[key][2]))
end

for i = FIRST_KEY, #ARGV, 3 do
  local key, created, used = ARGV[i], math.min(tonumber(ARGV[i + 1]), now), now - tonumber(ARGV[i + 2])
  if not keys[key] then
    keys[key] = {created, used}
    write(key)
  elseif used > keys[key][2] then
    keys[key][2] = used
    write(key)
  end
end

if fresh ~= '' then
  local before = current
  if not (current and keys[current]) then
    current = ARGV[FIRST_KEY] or fresh
  end
  if not keys[current] then
    keys[current] = {now, now}
  elseif keys[current][1] + lifetime < now then
    keys[current][2] = math.max(keys[current][2], now + GRACE)
    write(current)
    current = fresh
    keys[current] = {now, now}
  end
  if current ~= before then
    write(current)
    redis.call('HSET', KEYS[1], 'current', current)
  end
end

local calls = redis.pcall('HINCRBY', KEYS[1], 'calls', 1)
if type(calls) ~= 'number' or calls < 1 or calls > MOST_CALLS then -- Damaged: the answers are written again.
  redis.call('HSET', KEYS[1], 'calls', '1')
  calls = 1
end
local lost = ARGV[6] ~= '' and (ARGV[6] ~= epoch or calls <= tonumber(ARGV[7]))
if lost then
  redis.call('HSET', KEYS[1], announcement, string.format('%.0f', milliseconds + tonumber(ARGV[9])))
end
local reply = {
  string.format('%.0f', now), epoch, string.format('%.0f', calls), lost and '1' or '0', string.format('%.0f', others_restore),
  current or '',
}
for key, times in pairs(keys) do
  if key ~= current and times[2] + kept < now then
    redis.call('HDEL', KEYS[1], key)
  else
    reply[#reply + 1] = key
    reply[#reply + 1] = string.format('%.0f', times[1])
    reply[#reply + 1] = string.format('%.0f', times[2])
  end
end
redis.call('PEXPIRE', KEYS[1], ARGV[5])
return reply
