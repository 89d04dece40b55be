#!lua flags=allow-oom
-- unregister: take a reaped group off the register, unless an add has registered it again meanwhile.
--
-- KEYS[1] groups     zset group id → ms of its last sign of life
-- ARGV[1] group
-- ARGV[2] score      of the group before it was found idle
--
-- Returns 1 gone · 0 registered again
if redis.call('ZSCORE', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
return redis.call('ZREM', KEYS[1], ARGV[1])
