#!lua flags=allow-oom
-- claim: sweep after a dead process, one survivor a job name.
--
-- KEYS[1] swept      hash of the dead process: job name → 'done', or 'ms survivor' of who sweeps; expires in an hour
-- ARGV[1] name
-- ARGV[2] survivor
-- ARGV[3] patience   ms after which a survivor that has not come to an end counts as dead as well
-- ARGV[4] done       '1' when it has come to an end
--
-- Returns 1 sweep · 0 another survivor does · 2 it is done
-- @include clock
local known = redis.call('HGET', KEYS[1], ARGV[1])
if known == 'done' then return 2 end
local at, by = string.match(known or '', '^(%d+) (.*)$')
if at and by ~= ARGV[2] and now - tonumber(at) < tonumber(ARGV[3]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[4] == '1' and 'done' or string.format('%.0f ', now) .. ARGV[2])
redis.call('PEXPIRE', KEYS[1], 3600000)
return 1
