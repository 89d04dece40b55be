#!lua flags=allow-oom
-- halt: an operation goes no further; its driver hears of it when it keeps what it has done.
--
-- KEYS[1] operation  hash
-- KEYS[2] open       zset id → ms until which its driver has it
-- ARGV[1] id
--
-- Returns 1 it is stopped now · 0 it had ended
-- @include clock
if redis.call('HGET', KEYS[1], 'state') ~= 'running' then return 0 end
redis.call('HSET', KEYS[1], 'state', 'stopped', 'ended', string.format('%.0f', now))
redis.call('ZREM', KEYS[2], ARGV[1])
return 1
