#!lua flags=allow-oom
-- judge: keep what the process on duty has found of a minute; once a minute, whoever is on duty.
--
-- KEYS[1] alerts     hash, see `duty`
-- ARGV[1] process
-- ARGV[2] minute
-- ARGV[3] state      JSON
-- ARGV[4] again      '1': of a minute that this process has judged, because its alerts have been told
-- ARGV[5] length     ms of a minute
--
-- Returns 1 kept · 0 another process is on duty, or the minute was judged before
-- @include clock
local duty = redis.call('HMGET', KEYS[1], 'process', 'judged')
local judged, minute = tonumber(duty[2] or '') or -1, tonumber(ARGV[2])
if duty[1] ~= ARGV[1] then return 0 end
-- A minute that lies ahead was judged by a clock that was set back since.
if judged >= minute and ARGV[4] ~= '1' and judged <= math.floor(now / tonumber(ARGV[5])) + 1 then return 0 end
redis.call('HSET', KEYS[1], 'judged', ARGV[2], 'state', ARGV[3])
return 1
