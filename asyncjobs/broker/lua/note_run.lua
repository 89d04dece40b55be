#!lua flags=allow-oom
-- note_run: write down that a run of a task has begun or ended, or a tick that it did not run on.
--
-- KEYS[1] runs       list, see `task_runs`
-- KEYS[2] skips      list, see `task_runs`
-- KEYS[3] paused     hash task → JSON
-- ARGV[1] task
-- ARGV[2] kind       'begin', 'end' or 'skip'
-- ARGV[3] mark       of the run in the list of runs; of a tick: its scheduled ms
-- ARGV[4] more       JSON that follows: outcome, or why; '' where it begins
--
-- Returns 1 the task is paused · 0 it is not
-- @include clock
-- @include task_runs
if ARGV[2] == 'begin' then
  begin_run(KEYS[1], ARGV[3])
elseif ARGV[2] == 'end' then
  finish_run(KEYS[1], ARGV[3], ARGV[4])
else
  skip_tick(KEYS[2], ARGV[3], ARGV[4])
end
return redis.call('HGET', KEYS[3], ARGV[1]) and 1 or 0
