#!lua flags=no-writes
-- hear: what was told of cancels since, for a process that may have missed a message.
--
-- KEYS[1] cancels    zset, see `remind`
-- ARGV[1] since      ms, as this script has said it before; '+inf' for nothing but the time
--
-- Returns {now ms, what was told …}
-- @include clock
local reply = {string.format('%.0f', now)}
for _, one in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], ARGV[1], '+inf')) do reply[#reply + 1] = one end
return reply
