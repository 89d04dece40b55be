#!lua flags=allow-oom
-- tick: claim one firing of a task for one process of all.
--
-- KEYS[1] ticks      hash task → 'scheduled ms process' of the last tick claimed
-- KEYS[2] running    hash task → process that runs it; task .. ' queued' → scheduled ms
-- KEYS[3] processes  zset process → ms of its last beat
-- KEYS[4] due        zset process → ms when its shortest lease ends
-- ARGV[1] task
-- ARGV[2] scheduled  ms, the instant at which the tick is due
-- ARGV[3] process
-- ARGV[4] overlap    'skip', 'queue' or 'allow'
-- ARGV[5] lease      ms of silence after which a running process without a lease of its own counts as dead
-- ARGV[6] busy       '1' while the calling process itself runs the task
--
-- A claim in the future was made before the store's clock was set back, so it must not block later ticks.
--
-- Returns {'fire'} · {'fire', ms that the last claim lay in the future} · {'early', ms until due} · {'taken'} ·
-- {'overlap'} · {'queued'}
-- If the same process sends the call again after a lost reply, the script answers 'fire' again.
-- @include clock
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
if ARGV[4] ~= 'allow' then
  local runner = redis.call('HGET', KEYS[2], task)
  local beat = runner and redis.call('ZSCORE', KEYS[3], runner)
  -- The end of a run may not have been recorded. The process of that run knows that it is over.
  if runner == process and ARGV[6] ~= '1' then beat = nil end
  local due = beat and redis.call('ZSCORE', KEYS[4], runner)
  if due and tonumber(due) > now or not due and beat and now - tonumber(beat) < tonumber(ARGV[5]) then
    -- The mark above is no claim to run, so a repeated call must hear 'taken'.
    redis.call('HSET', KEYS[1], task, string.format('%.0f -', scheduled))
    if ARGV[4] == 'skip' then return {'overlap'} end
    redis.call('HSET', KEYS[2], task .. ' queued', ARGV[2])
    return {'queued'}
  end
  redis.call('HSET', KEYS[2], task, process)
end
if ahead > 0 then return {'fire', ahead} end
return {'fire'}
