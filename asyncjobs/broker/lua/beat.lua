#!lua flags=allow-oom
-- beat: record that a process lives, and return the processes that were silent for longest.
--
-- KEYS[1] processes  zset process → ms of its last beat
-- KEYS[2] epoch      string, drawn if it is missing, so that it changes only with the loss of the data
-- KEYS[3] due        zset process → ms when its shortest lease ends
-- KEYS[4] leases     hash process → its leases, as the caller gives them
-- KEYS[5] swept      hash of this process, see `claim`: deleted, since a process that lives may be given up anew
-- KEYS[6] about      hash process → JSON, what it says of itself; 'process names' → JSON, its job and task names
-- KEYS[7] draining   hash process → JSON: it was asked to take nothing
-- ARGV[1] process
-- ARGV[2] joining    '1' when the process has just taken this name
-- ARGV[3] draw       an epoch never used before
-- ARGV[4] lease      ms, the shortest lease of the process
-- ARGV[5] leases     of the process's job names
-- ARGV[6] about      JSON
-- ARGV[7] names      JSON, '' where they are written already
-- ARGV[8] draining   JSON of a process that joins under a new name and was asked to take nothing, else ''
--
-- Returns {1 alive, 2 alive and asked to take nothing, or 0 declared dead (not written), epoch, name, ms since its last
-- beat, its leases or '', …}; at most those 200 whose leases end first, and the 200 that were silent for longest: an
-- earlier release tells no lease, and leaves what others say of themselves when it buries them.
-- A beat in the future is one by a clock that was set back since; it counts as now, or its death would go unnoticed.
-- @include clock
local me, reply = ARGV[1], {1, redis.call('GET', KEYS[2])}
local function forget(name)
  redis.call('HDEL', KEYS[6], name, name .. ' names')
  redis.call('HDEL', KEYS[7], name)
end
if not reply[2] then
  redis.call('SET', KEYS[2], ARGV[3])
  reply[2] = ARGV[3]
end
for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now, '+inf', 'LIMIT', 0, 200)) do
  local due, beat = redis.call('ZSCORE', KEYS[3], name), redis.call('ZSCORE', KEYS[1], name)
  redis.call('ZADD', KEYS[1], now, name)
  if due then redis.call('ZADD', KEYS[3], now + math.max(0, tonumber(due) - tonumber(beat)), name) end
end
if ARGV[2] == '1' or redis.call('ZSCORE', KEYS[1], me) then
  redis.call('ZADD', KEYS[1], now, me)
  redis.call('ZADD', KEYS[3], now + ARGV[4], me)
  redis.call('HSET', KEYS[4], me, ARGV[5])
  redis.call('HSET', KEYS[6], me, ARGV[6])
  if ARGV[7] ~= '' then redis.call('HSET', KEYS[6], me .. ' names', ARGV[7]) end
  if ARGV[8] ~= '' then redis.call('HSET', KEYS[7], me, ARGV[8]) end
  if redis.call('HGET', KEYS[7], me) then reply[1] = 2 end
  redis.call('DEL', KEYS[5])
else
  reply[1] = 0
end
if ARGV[2] == '1' and redis.call('HLEN', KEYS[6]) > 2 * redis.call('ZCARD', KEYS[1]) + 16 then
  for _, field in ipairs(redis.call('HKEYS', KEYS[6])) do
    local name = string.match(field, '^(.*) names$') or field
    if not redis.call('ZSCORE', KEYS[1], name) then forget(name) end
  end
end
local names, seen = {}, {[me] = true}
local function hear(key)
  for _, name in ipairs(redis.call('ZRANGE', key, 0, 199)) do
    if not seen[name] then
      seen[name] = true
      names[#names + 1] = name
    end
  end
end
hear(KEYS[3])
hear(KEYS[1])
if #names > 0 then
  local leases = redis.call('HMGET', KEYS[4], unpack(names))
  for i, name in ipairs(names) do
    local beat, n = redis.call('ZSCORE', KEYS[1], name), #reply
    if beat then
      reply[n + 1], reply[n + 2], reply[n + 3] = name, math.max(0, now - tonumber(beat)), leases[i] or ''
    else
      -- An earlier release has buried the process, or taken it off the list.
      redis.call('ZREM', KEYS[3], name)
      redis.call('HDEL', KEYS[4], name)
      forget(name)
    end
  end
end
return reply
