#!lua flags=allow-oom
-- remind: keep what was told of cancels, for processes that have missed the message.
--
-- KEYS[1] cancels    zset: what was told → ms of that
-- ARGV[1] age        ms that it is kept
-- ARGV[2] most       of them are kept
-- ARGV[3…] what was told
--
-- Returns 1
-- @include clock
for i = 3, #ARGV do redis.call('ZADD', KEYS[1], now, ARGV[i]) end
local function forget(members)
  if #members > 0 then redis.call('ZREM', KEYS[1], unpack(members)) end
end
forget(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[1], 'LIMIT', 0, 1000))
local over = redis.call('ZCARD', KEYS[1]) - ARGV[2]
if over > 0 then forget(redis.call('ZRANGE', KEYS[1], 0, math.min(over, 5000) - 1)) end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1
