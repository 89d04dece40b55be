#!lua flags=allow-oom
-- claim: let one survivor sweep a job name of a dead process.
--
-- KEYS[1] swept      hash of the dead process: job name → 'done', or 'ms survivor' of the sweep; expires in an hour
-- ARGV[1] name
-- ARGV[2] survivor
-- ARGV[3] patience   ms after which a survivor that has not finished counts as dead as well
-- ARGV[4] done       '1' when the survivor has finished
--
-- Returns 1 sweep · 0 another survivor sweeps · 2 the name is done
-- @include clock
local known = redis.call('HGET', KEYS[1], ARGV[1])
if known == 'done' then return 2 end
local at, by = string.match(known or '', '^(%d+) (.*)$')
if at and by ~= ARGV[2] and now - tonumber(at) < tonumber(ARGV[3]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[4] == '1' and 'done' or string.format('%.0f ', now) .. ARGV[2])
redis.call('PEXPIRE', KEYS[1], 3600000)
return 1
