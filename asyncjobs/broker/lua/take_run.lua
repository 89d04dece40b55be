#!lua flags=allow-oom
-- take_run: take a run of a task that was asked for, as a tick that is due now; once over all processes.
--
-- KEYS[1] asked      string, see `ask_run`
-- KEYS[2] running    hash task → process that runs it; task .. ' queued' → scheduled ms
-- KEYS[3] processes  zset process → ms of its last beat
-- KEYS[4] due        zset process → ms when its shortest lease ends
-- KEYS[5] runs       list, see `task_runs`
-- KEYS[6] skips      list, see `task_runs`
-- ARGV[1] task
-- ARGV[2] process
-- ARGV[3] overlap    'skip', 'queue' or 'allow'
-- ARGV[4] lease      ms of silence after which a running process counts as dead that tells no lease of its own
-- ARGV[5] busy       '1' while the calling process itself runs the task
-- ARGV[6] each       '1' where the task runs in every process, and each minds its own runs alone
--
-- Returns {'fire', 'overlap', 'queued', 'taken' by another process or 'gone', scheduled ms}
-- Sent again after a lost reply by the same process it answers the same again.
-- @include clock
-- @include overlap
-- @include task_runs
local task, process, overlap = ARGV[1], ARGV[2], ARGV[3]
local known = redis.call('GET', KEYS[1])
if not known then return {'gone', '0'} end
local scheduled, before, by = string.match(known, '^(%d+) ?(%S*) ?(.*)$')
if before ~= '' then return {by == process and before or 'taken', scheduled} end
local busy = ARGV[6] == '1' and ARGV[5] == '1'
if ARGV[6] ~= '1' then busy = runs_already(KEYS[2], KEYS[3], KEYS[4], task, process, ARGV[4], ARGV[5]) end
local verdict = 'fire'
if busy and overlap == 'skip' then
  verdict = 'overlap'
  skip_tick(KEYS[6], scheduled, '"w":"overlap"')
elseif busy and overlap == 'queue' then
  verdict = 'queued'
  if ARGV[6] ~= '1' then redis.call('HSET', KEYS[2], task .. ' queued', scheduled) end
else
  if overlap ~= 'allow' and ARGV[6] ~= '1' then redis.call('HSET', KEYS[2], task, process) end
  begin_run(KEYS[5], '{"s":' .. scheduled .. ',"p":"' .. process .. '","m":1')
end
redis.call('SET', KEYS[1], scheduled .. ' ' .. verdict .. ' ' .. process, 'PX', 60000)
return {verdict, scheduled}
