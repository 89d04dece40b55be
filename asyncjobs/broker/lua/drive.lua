#!lua flags=allow-oom
-- drive: go on with an operation, in one process at a time, and keep how far it has come.
--
-- KEYS[1] operation  hash: what it does, and how far it has come
-- KEYS[2] open       zset id → ms until which its driver has it
-- ARGV[1] id
-- ARGV[2] driver     the process, and which of its attempts
-- ARGV[3] lease      ms for which the driver has it, unless it drives on
-- ARGV[4…] field · value: what has changed; nothing: it takes the operation up
--
-- Returns {1, field, value, …}: the driver has it, all of it · {0, ms until another one may take it up} · {-1}: it is no more
-- What was kept by a driver that has lost it since is not kept: another one has gone on from where that was.
-- @include clock
local known = redis.call('HMGET', KEYS[1], 'driver', 'state')
if not known[2] then
  redis.call('ZREM', KEYS[2], ARGV[1])
  return {-1}
end
local till = tonumber(redis.call('ZSCORE', KEYS[2], ARGV[1])) or 0
if known[1] ~= ARGV[2] then
  if #ARGV > 3 then return {0, 0} end
  if known[2] == 'running' and till > now then return {0, till - now} end
end
redis.call('HSET', KEYS[1], 'driver', ARGV[2])
if known[2] ~= 'running' then
  for i = 4, #ARGV, 2 do
    if ARGV[i] ~= 'state' then redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
  end
else
  for i = 4, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
end
if redis.call('HGET', KEYS[1], 'state') == 'running' then
  redis.call('ZADD', KEYS[2], now + tonumber(ARGV[3]), ARGV[1])
else
  redis.call('ZREM', KEYS[2], ARGV[1])
end
local reply = redis.call('HGETALL', KEYS[1])
table.insert(reply, 1, 1)
return reply
