#!lua flags=allow-oom
-- end_run: record that a run of a task has ended, and hand out the tick that was queued behind it, if any.
--
-- KEYS[1] running    hash task → process that runs it; task .. ' queued' → scheduled ms
-- ARGV[1] task
-- ARGV[2] process
-- ARGV[3] more       '1' to take the queued tick, '0' when stopping
--
-- Returns the scheduled ms of the queued tick, which the caller now runs, or ''
local runner = redis.call('HGET', KEYS[1], ARGV[1])
if runner ~= ARGV[2] then return '' end
local queued = redis.call('HGET', KEYS[1], ARGV[1] .. ' queued')
redis.call('HDEL', KEYS[1], ARGV[1] .. ' queued')
if queued and ARGV[3] == '1' then return queued end
redis.call('HDEL', KEYS[1], ARGV[1])
return ''
