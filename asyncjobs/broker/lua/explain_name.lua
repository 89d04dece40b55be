#!lua flags=no-writes
-- explain_name: what holds for all groups of a job name together.
--
-- KEYS[1] settings   hash, see `work`: what was set for each group
-- KEYS[2] gate       hash, see `admit`
-- ARGV[1] lease      ms
--
-- Returns {settings w c p, state of the gate as `gate_state` has it}
-- @include clock
-- @include gate_state
local set = redis.call('HMGET', KEYS[1], 'w', 'c', 'p')
for i = 1, 3 do set[i] = set[i] or '' end
return {set, gate_state(KEYS[2], tonumber(ARGV[1]))}
