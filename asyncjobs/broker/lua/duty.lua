#!lua flags=allow-oom
-- duty: one process of the installation looks for alerts; say what this one serves, and hear what is alerted.
--
-- KEYS[1] alerts     hash: process on duty, until ms, listens '1', judged minute, state JSON; expires
-- KEYS[2] serves     hash process → JSON, the job names that it consumes and the next tick of each of its tasks; expires
-- ARGV[1] process
-- ARGV[2] lease      ms for which it is on duty unless it asks again
-- ARGV[3] listens    '1': somebody listens to alerts in that process; such a one goes before others
-- ARGV[4] serves     JSON, '' where it serves nothing
-- ARGV[5] leaving    '1': it stops
--
-- Returns {1 on duty or 0, now ms, judged minute or '', state or '', process, serves, …}; the latter only of one on duty
-- @include clock
local me, lease = ARGV[1], tonumber(ARGV[2])
local duty = redis.call('HMGET', KEYS[1], 'process', 'until', 'listens', 'judged', 'state')
if ARGV[5] == '1' then
  -- What it served stays: where all who had tasks have stopped, the ticks that come are missed.
  if duty[1] == me then redis.call('HDEL', KEYS[1], 'process', 'until', 'listens') end
  return {0, now, '', ''}
end
if ARGV[4] ~= '' then
  redis.call('HSET', KEYS[2], me, ARGV[4])
  redis.call('PEXPIRE', KEYS[2], 86400000)
end
local till = tonumber(duty[2] or '') or 0
-- One that lies far ahead was written by a clock that was set back since.
local free = not duty[1] or duty[1] == me or till <= now or till > now + 10 * lease
if free or (ARGV[3] == '1' and duty[3] ~= '1') then
  redis.call('HSET', KEYS[1], 'process', me, 'until', string.format('%.0f', now + lease), 'listens', ARGV[3])
  redis.call('PEXPIRE', KEYS[1], 3600000)
  local reply = {1, now, duty[4] or '', duty[5] or ''}
  for _, one in ipairs(redis.call('HGETALL', KEYS[2])) do reply[#reply + 1] = one end
  return reply
end
return {0, now, duty[4] or '', duty[5] or ''}
