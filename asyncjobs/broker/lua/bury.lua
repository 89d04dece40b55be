#!lua flags=allow-oom
-- bury: declare a process dead whose jobs were all given back, unless it has shown a sign of life.
--
-- KEYS[1] processes  zset process → ms of its last beat
-- ARGV[1] process
-- ARGV[2] lease      ms of silence that make it dead
--
-- Returns 1 buried · 0 alive, or buried already
local t = redis.call('TIME')
local at = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not at or t[1] * 1000 + math.floor(t[2] / 1000) - at < tonumber(ARGV[2]) then return 0 end
return redis.call('ZREM', KEYS[1], ARGV[1])
