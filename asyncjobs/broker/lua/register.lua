#!lua
-- register: register groups of one job name before they get work.
--
-- KEYS[1] groups     zset group id → ms of its last sign of life
-- ARGV[…] the group ids
--
-- Returns 1. A registered group without work is harmless. Work without a registration would not be found.
-- @include clock
for i = 1, #ARGV do redis.call('ZADD', KEYS[1], now, ARGV[i]) end
return 1
