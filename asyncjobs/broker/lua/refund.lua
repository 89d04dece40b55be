#!lua flags=allow-oom
-- refund: give back tokens that `admit` granted and for which no job was found.
--
-- KEYS[1] gate       as in `admit`
-- ARGV[1] token      of the grant
-- ARGV[2] granted
-- ARGV[3] unused
-- ARGV[4] windows    as in `admit`
-- ARGV[5] news       channel told if a process was refused tokens, so that it asks again
-- ARGV[6] message    for that channel
--
-- Returns 1. A repeated call finds no token the second time.
local place, granted, unused = 0, tonumber(ARGV[2]), tonumber(ARGV[3])
for _ in string.gmatch(ARGV[4], '%d+:%d+') do
  place = place + 1
  local zset, member = KEYS[1] .. ':' .. place, ARGV[1] .. ' ' .. granted
  local at = redis.call('ZSCORE', zset, member)
  if at then
    redis.call('ZREM', zset, member)
    if unused < granted then redis.call('ZADD', zset, at, ARGV[1] .. ' ' .. (granted - unused)) end
    redis.call('HINCRBY', KEYS[1], 'u' .. place, -unused)
  end
end
if place > 0 and redis.call('HDEL', KEYS[1], 'w') == 1 then redis.call('PUBLISH', ARGV[5], ARGV[6]) end
return 1
