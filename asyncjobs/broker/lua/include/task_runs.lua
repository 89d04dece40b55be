-- task_runs: the lists of a task's last 50 runs and last 50 ticks that it did not run on. Needs `clock`.
--
-- A run: {s scheduled ms, p process, m 1 where it was asked for, b began ms, e ended ms, o outcome, x error}; what stands
-- before b is its mark, by which it is found again. A tick: {s scheduled ms, w why, x more of it, a ms when it was noted}.
local function push(list, text)
  redis.call('RPUSH', list, text)
  redis.call('LTRIM', list, -50, -1)
  redis.call('PEXPIRE', list, 7776000000)
end

local function place(list, mark)
  for i = 1, 50 do
    local text = redis.call('LINDEX', list, -i)
    if not text then return nil end
    if string.sub(text, 1, #mark) == mark then return -i, text end
  end
end

local function begin_run(list, mark)
  if mark ~= '' and not place(list, mark) then push(list, mark .. string.format(',"b":%.0f}', now)) end
end

-- The end of a run is written once; `more`: its outcome, as JSON that follows.
local function finish_run(list, mark, more)
  if mark == '' then return end
  local i, text = place(list, mark)
  if not i then
    push(list, mark .. string.format(',"e":%.0f', now) .. more .. '}')
  elseif not string.find(text, '"e":', #mark, true) then
    redis.call('LSET', list, i, string.sub(text, 1, -2) .. string.format(',"e":%.0f', now) .. more .. '}')
  end
end

-- A tick is noted once, whichever process says so.
local function skip_tick(list, scheduled, more)
  local mark = '{"s":' .. scheduled .. ','
  if not place(list, mark) then push(list, mark .. more .. string.format(',"a":%.0f}', now)) end
end
