#!lua flags=allow-oom
-- plan: an operation begins, also while memory is short: it may make room. The oldest of those that have ended go.
--
-- KEYS[1] operation  hash
-- KEYS[2] open       zset id → ms until which its driver has it
-- KEYS[3] all        zset id → ms when it began
-- ARGV[1] id
-- ARGV[2] prefix     of the hashes
-- ARGV[3] kept       how many operations are kept
-- ARGV[4…] field · value
--
-- Returns now ms; what is sent again changes nothing
-- @include clock
if redis.call('EXISTS', KEYS[1]) == 1 then return now end
redis.call('HSET', KEYS[1], 'state', 'running', 'began', string.format('%.0f', now), unpack(ARGV, 4))
redis.call('ZADD', KEYS[2], now, ARGV[1])
redis.call('ZADD', KEYS[3], now, ARGV[1])
local over = redis.call('ZCARD', KEYS[3]) - tonumber(ARGV[3])
if over > 0 then
  for _, id in ipairs(redis.call('ZRANGE', KEYS[3], 0, over - 1)) do
    if not redis.call('ZSCORE', KEYS[2], id) then
      redis.call('UNLINK', ARGV[2] .. id)
      redis.call('ZREM', KEYS[3], id)
    end
  end
end
return now
