#!lua flags=allow-oom
-- beat: record that a process lives, and return the processes that were silent for longest.
--
-- KEYS[1] processes  zset process → ms of its last beat
-- KEYS[2] epoch      string, drawn if it is missing, so that it changes only with the loss of the data
-- KEYS[3] due        zset process → ms when its shortest lease ends
-- KEYS[4] leases     hash process → its leases, as the caller gives them
-- KEYS[5] swept      hash of this process, see `claim`: deleted, since a process that lives may be given up anew
-- ARGV[1] process
-- ARGV[2] joining    '1' when the process has just taken this name
-- ARGV[3] draw       an epoch never used before
-- ARGV[4] lease      ms, the shortest lease of the process
-- ARGV[5] leases     of the process's job names
--
-- Returns {1 alive or 0 declared dead (not written), epoch, name, ms since its last beat, its leases or '', …}: at most
-- the 200 processes whose leases end first, and the 200 that were silent for longest. Earlier releases tell no lease.
-- A beat in the future comes from a clock that was set back since. It counts as now, else the death would go unnoticed.
-- @include clock
local me, reply = ARGV[1], {1, redis.call('GET', KEYS[2])}
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
  redis.call('DEL', KEYS[5])
else
  reply[1] = 0
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
    end
  end
end
return reply
