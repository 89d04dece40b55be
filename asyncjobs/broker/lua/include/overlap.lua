-- overlap: whether a run of a task that has begun keeps another one out, by the hash of what runs and the zsets of
-- processes and of their leases. Needs `clock`.
--
-- lease: ms of silence after which a process counts as dead that tells no lease; busy: '1' while `process` runs it.
local function runs_already(running, processes, leases, task, process, lease, busy)
  local runner = redis.call('HGET', running, task)
  local beat = runner and redis.call('ZSCORE', processes, runner)
  -- A run whose end could not be recorded is known to be over by its own process.
  if runner == process and busy ~= '1' then beat = nil end
  local due = beat and redis.call('ZSCORE', leases, runner)
  return due and tonumber(due) > now or not due and beat and now - tonumber(beat) < tonumber(lease)
end
