-- acted: what operators do to a job is told in its record: `y`, one JSON object a line, the last 20, and `O`, the last act.
-- Needs `clock`'s stamp.
local function tell_act(key, act, entry)
  local told = redis.call('HGET', key, 'y') or ''
  local _, lines = string.gsub(told, '\n', '\n')
  if lines >= 19 then told = string.match(told, '\n(.*)$') end
  if told ~= '' then told = told .. '\n' end
  redis.call('HSET', key, 'O', act, 'y', told .. '{"at":' .. stamp .. ',' .. entry)
end
