#!lua flags=no-writes
-- idle: how long a group has had no sign of life.
--
-- KEYS[1] groups     zset group id → ms of its last sign of life
-- ARGV[1] group
--
-- Returns {its score or '', ms since}
-- @include clock
local score = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not score then return {'', 0} end
return {score, now - score}
