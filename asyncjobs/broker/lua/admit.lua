#!lua flags=allow-oom
-- admit: let a process start some jobs under a limit over many queues, and record how many jobs the process runs.
--
-- KEYS[1] gate       hash: 'h ' .. process → 'running, ms at which the process said so'; 'u' .. window → tokens out;
--                    'w' a process was refused a token since one was given back last;
--                    beside it a zset for each window, gate:1 …: 'token n' → µs of return
-- ARGV[1] process
-- ARGV[2] running    jobs under this gate in that process, without the wanted ones
-- ARGV[3] want       how many more jobs the process would start
-- ARGV[4] slots      most running over all processes, 0 for no such bound
-- ARGV[5] lease      ms after which the number of a silent process does not count
-- ARGV[6] windows    'max:µs max:µs …', '' for none
-- ARGV[7] margin     µs that a start may lag
-- ARGV[8] token      unique for this call
-- ARGV[9] spare      tokens of each window that are left to other queues before the first start, the second, …: 'n n …',
--                    the last number for all that follow as well; '' for none
-- ARGV[10] news      channel told when the gate was full and has room again
-- ARGV[11] message   for that channel
--
-- Returns {granted, ms until a token is back or -1}
local gate, me, want, slots = KEYS[1], 'h ' .. ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[4])
local spare = {}
for n in string.gmatch(ARGV[9], '%d+') do spare[#spare + 1] = tonumber(n) end

-- How many of those that are wanted may start where so many tokens are left.
local function fitting(left)
  local most = math.min(want, left)
  while most > 0 and most + (spare[math.min(most, #spare)] or 0) > left do most = most - 1 end
  return math.max(0, most)
end

-- @include clock
local running, wait = tonumber(ARGV[2]), -1
local others, before = 0, 0
if slots > 0 then
  local rows = redis.call('HGETALL', gate)
  for i = 1, #rows, 2 do
    local n, at = string.match(rows[i + 1], '^(%d+) (%d+)$')
    if string.sub(rows[i], 1, 2) == 'h ' then
      if rows[i] == me then
        before = tonumber(n)
      elseif now - tonumber(at) > tonumber(ARGV[5]) then
        redis.call('HDEL', gate, rows[i])
      else
        others = others + tonumber(n)
      end
    end
  end
  want = math.max(0, math.min(want, slots - others - running))
end
local place = 0
for most, window in string.gmatch(ARGV[6], '(%d+):(%d+)') do
  place = place + 1
  local zset, field = gate .. ':' .. place, 'u' .. place
  local back, returned = redis.call('ZRANGEBYSCORE', zset, '-inf', now_us, 'LIMIT', 0, 1000), 0
  for _, member in ipairs(back) do returned = returned + tonumber(string.match(member, ' (%d+)$')) end
  if #back > 0 then
    redis.call('ZREM', zset, unpack(back))
    redis.call('HINCRBY', gate, field, -returned)
  end
  local left = tonumber(most) - tonumber(redis.call('HGET', gate, field) or 0)
  local fit = fitting(left)
  local first = fit < want and redis.call('ZRANGE', zset, 0, 0, 'WITHSCORES')[2]
  if left < want and not first then  -- no token is out, whatever the count says: an operator may have deleted the zset
    redis.call('HDEL', gate, field)
    fit = fitting(tonumber(most))
  end
  if fit < want then
    want = fit
    redis.call('HSET', gate, 'w', '1')
    if first then
      -- At most one or two durations, even if the clock was set back.
      wait = math.max(wait, 1, math.ceil(math.min(tonumber(first) - now_us, 3600000000) / 1000))
    elseif want > 0 then  -- all that is out then is what is taken now
      wait = math.max(wait, math.ceil(math.min(window + ARGV[7], 3600000000) / 1000))
    end
  end
end
if want > 0 then
  place = 0
  for _, window in string.gmatch(ARGV[6], '(%d+):(%d+)') do
    place = place + 1
    -- A repeated question may get the same grant again. Its tokens are out once.
    if redis.call('ZADD', gate .. ':' .. place, now_us + window + ARGV[7], ARGV[8] .. ' ' .. want) == 1 then
      redis.call('HINCRBY', gate, 'u' .. place, want)
    end
  end
end
if slots > 0 then
  local held = running + want
  if held > 0 then
    redis.call('HSET', gate, me, held .. ' ' .. now)
  elseif before > 0 then
    redis.call('HDEL', gate, me)
  end
  if others + before >= slots and others + held < slots then redis.call('PUBLISH', ARGV[10], ARGV[11]) end
end
return {want, wait}
