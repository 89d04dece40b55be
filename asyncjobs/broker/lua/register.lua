#!lua
-- register: say that groups of one job name are about to get work, before they do.
--
-- KEYS[1] groups     zset group id → ms of its last sign of life
-- ARGV[…] the group ids
--
-- Returns 1. A registered group without work is harmless; work without registration would not be found.
-- @include clock
for i = 1, #ARGV do redis.call('ZADD', KEYS[1], now, ARGV[i]) end
return 1
