#!lua flags=no-writes
-- idle: how long a group has shown no sign of life.
--
-- KEYS[1] groups     zset group id → ms of its last sign of life
-- ARGV[1] group
--
-- Returns {its score or '', ms since}
local t = redis.call('TIME')
local score = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not score then return {'', 0} end
return {score, t[1] * 1000 + math.floor(t[2] / 1000) - score}
