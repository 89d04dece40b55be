#!lua flags=allow-oom
-- rank: which names have a history of their own: those with the most traffic, of which that of a day ago counts half.
--
-- KEYS[1] history    zset name → rank: days since the epoch + log2 of its traffic, as if all of that were of now
-- ARGV[1] most       names
-- ARGV[2…] name, traffic since it was told last
--
-- Returns one character a name: '1' its own · '0' it is counted with the others
-- @include clock
local most, answers = tonumber(ARGV[1]), {}
local days = now / 86400000
for i = 2, #ARGV, 2 do
  local name, new = ARGV[i], days + math.log(math.max(1, tonumber(ARGV[i + 1]))) / math.log(2)
  local old = tonumber(redis.call('ZSCORE', KEYS[1], name) or '')
  if old and old > new + 64 then old = nil end  -- told by a clock that was set back since
  local own = old ~= nil
  if old then
    local high, low = math.max(old, new), math.min(old, new)
    new = high + math.log(1 + 2 ^ (low - high)) / math.log(2)
  elseif redis.call('ZCARD', KEYS[1]) < most then
    own = true
  else
    local least = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
    own = new > tonumber(least[2]) + 1
    if own then redis.call('ZREM', KEYS[1], least[1]) end
  end
  if own then redis.call('ZADD', KEYS[1], string.format('%.6f', new), name) end
  answers[#answers + 1] = own and '1' or '0'
end
redis.call('PEXPIRE', KEYS[1], 2592000000)
return table.concat(answers)
