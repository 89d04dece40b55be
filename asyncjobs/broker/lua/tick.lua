#!lua flags=allow-oom
-- tick: claim one firing of a task for one process of all.
--
-- KEYS[1] ticks      hash task → 'scheduled ms process' of the last tick claimed
-- KEYS[2] running    hash task → process that runs it; task .. ' queued' → scheduled ms
-- KEYS[3] processes  zset process → ms of its last beat
-- KEYS[4] due        zset process → ms when its shortest lease ends
-- KEYS[5] paused     hash task → JSON
-- KEYS[6] runs       list, see `task_runs`
-- KEYS[7] skips      list, see `task_runs`
-- ARGV[1] task
-- ARGV[2] scheduled  ms, the instant at which the tick is due
-- ARGV[3] process
-- ARGV[4] overlap    'skip', 'queue' or 'allow'
-- ARGV[5] lease      ms of silence after which a running process without a lease of its own counts as dead
-- ARGV[6] busy       '1' while the calling process itself runs the task
-- ARGV[7] mark       of the run in the list of runs
--
-- A claim in the future was made before the store's clock was set back, so it must not block later ticks.
--
-- Returns {'fire'} · {'fire', ms that the last claim lay in the future} · {'early', ms until due} · {'taken'} ·
-- {'overlap'} · {'queued'} · {'paused'}
-- If the same process sends the call again after a lost reply, the script answers 'fire' again.
-- @include clock
-- @include overlap
-- @include task_runs
local task, scheduled, process = ARGV[1], tonumber(ARGV[2]), ARGV[3]
if scheduled > now then return {'early', scheduled - now} end
local last, ahead = redis.call('HGET', KEYS[1], task), 0
if last then
  local at, by = string.match(last, '^(%d+) (.*)$')
  if tonumber(at) == scheduled and by == process then return {'fire'} end
  ahead = math.max(0, tonumber(at) - now)
  if tonumber(at) >= scheduled and ahead == 0 then return {'taken'} end
end
redis.call('HSET', KEYS[1], task, string.format('%.0f ', scheduled) .. process)
local paused = redis.call('HGET', KEYS[5], task)
if paused or ARGV[4] ~= 'allow' and runs_already(KEYS[2], KEYS[3], KEYS[4], task, process, ARGV[5], ARGV[6]) then
  -- The mark above is no claim to run, so a repeated call must hear 'taken'.
  redis.call('HSET', KEYS[1], task, string.format('%.0f -', scheduled))
  if paused or ARGV[4] == 'skip' then
    skip_tick(KEYS[7], ARGV[2], paused and '"w":"paused"' or '"w":"overlap"')
    return {paused and 'paused' or 'overlap'}
  end
  redis.call('HSET', KEYS[2], task .. ' queued', ARGV[2])
  return {'queued'}
end
if ARGV[4] ~= 'allow' then redis.call('HSET', KEYS[2], task, process) end
begin_run(KEYS[6], ARGV[7])
if ahead > 0 then return {'fire', ahead} end
return {'fire'}
