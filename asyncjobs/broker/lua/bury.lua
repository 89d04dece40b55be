#!lua flags=allow-oom
-- bury: take a process off the list. The process is gone, or all its jobs were given back and it was silent since then.
--
-- KEYS[1] processes  zset process → ms of its last beat
-- KEYS[2] due        zset process → ms when its shortest lease ends
-- KEYS[3] leases     hash process → its leases
-- KEYS[4] about      hash process → JSON; 'process names' → JSON
-- KEYS[5] draining   hash process → JSON
-- ARGV[1] process
-- ARGV[2] lease      ms of silence that make a process dead; 0 if the process takes itself off
--
-- Returns 1 buried · 0 alive, or buried already
-- @include clock
local at = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not at or now - at < tonumber(ARGV[2]) then return 0 end
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[3], ARGV[1])
redis.call('HDEL', KEYS[4], ARGV[1], ARGV[1] .. ' names')
redis.call('HDEL', KEYS[5], ARGV[1])
return redis.call('ZREM', KEYS[1], ARGV[1])
