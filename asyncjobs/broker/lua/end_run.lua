#!lua flags=allow-oom
-- end_run: record that a run of a task has ended, and hand out the tick that was queued behind it, if any.
--
-- KEYS[1] running    hash task → process that runs it; task .. ' queued' → scheduled ms; task .. ' handed' → 'scheduled ms
--                    of what was handed out, mark of the run that had ended'
-- KEYS[2] paused     hash task → JSON
-- KEYS[3] runs       list, see `task_runs`
-- KEYS[4] skips      list, see `task_runs`
-- ARGV[1] task
-- ARGV[2] process    under whose name the run began
-- ARGV[3] more       '1' to take the queued tick, '0' when stopping
-- ARGV[4] mark       of the run in the list of runs
-- ARGV[5] outcome    JSON that follows in its entry
--
-- Returns the scheduled ms of the queued tick, which the caller now runs, or ''; the same where it is sent again
-- @include clock
-- @include task_runs
local task, process, mark = ARGV[1], ARGV[2], ARGV[4]
finish_run(KEYS[3], mark, ARGV[5])
local runner = redis.call('HGET', KEYS[1], task)
if runner ~= process then return '' end
local handed, behind = string.match(redis.call('HGET', KEYS[1], task .. ' handed') or '', '^(%d+) (.*)$')
if handed and mark ~= '' and behind == mark then return handed end
local queued = redis.call('HGET', KEYS[1], task .. ' queued')
if queued and redis.call('HGET', KEYS[2], task) then
  skip_tick(KEYS[4], queued, '"w":"paused"')
elseif queued and ARGV[3] == '1' then
  redis.call('HDEL', KEYS[1], task .. ' queued')
  redis.call('HSET', KEYS[1], task .. ' handed', queued .. ' ' .. mark)
  begin_run(KEYS[3], '{"s":' .. queued .. ',"p":"' .. process .. '"')
  return queued
end
redis.call('HDEL', KEYS[1], task, task .. ' queued', task .. ' handed')
return ''
