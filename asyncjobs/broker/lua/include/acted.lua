-- acted: what operators do to a job is told in its record: `y`, one JSON object a line, the last 20, and `O`, the last act.
-- Needs prefix, delayed and act, and `clock`'s stamp, `standing`, `requeue`, `news`.
local function tell_act(key, act, entry)
  local told = redis.call('HGET', key, 'y') or ''
  local _, lines = string.gsub(told, '\n', '\n')
  if lines >= 19 then told = string.match(told, '\n(.*)$') end
  if told ~= '' then told = told .. '\n' end
  redis.call('HSET', key, 'O', act, 'y', told .. '{"at":' .. stamp .. ',' .. entry)
end

-- reach: of the jobs in ARGV from `first` on, those in a state of `zsets`, letter → key, leave that and wait. `change`: what
-- else becomes of their records. Returns the reply of the script.
local function reach(first, zsets, change)
  redis.call('ZCARD', delayed)
  for _, zset in pairs(zsets) do redis.call('ZCARD', zset) end  -- one of a foreign type fails before anything is written
  local answers, failure = {}, nil
  for i = first, #ARGV do
    local id = ARGV[i]
    local key = prefix .. id
    local state, job, broken = standing(key, id, delayed)
    failure = broken
    if broken then break end
    if job[3] == act then
      state = '2'
    elseif zsets[state] then
      change(key)
      tell_act(key, act, ARGV[5])
      requeue(key, id)
      redis.call('ZREM', zsets[state], id)
      state = '1'
    end
    answers[#answers + 1] = state
  end
  if requeued > 0 then tell_news(ARGV[2], ARGV[3]) end
  return failure or {now, table.concat(answers)}
end
