#!lua flags=no-writes
-- tally: how many jobs of several queues are in one state.
--
-- KEYS[1] any        key of the slot that all of them lie in; outside of a Cluster everything does
-- ARGV[1] state      'w' waiting · 'a' active · else what stands behind the tag of the sorted set: 'd' 'c' 'f' 'k'
-- ARGV[2] least      score, '-inf' for all                     ARGV[3] most  score
-- ARGV[4] enough     jobs, or fifty queues that have any, after which no further queue is looked at; 0: all are
-- ARGV[5…] the tags of the queues
--
-- Returns one number a queue that was looked at, -1 where the key is of a foreign type
-- @include foreign
-- @include handed_out
local state, least, most, enough = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local numbers, queues, total = {}, 0, 0
local in_stream, all = state == 'w' or state == 'a', least == '-inf' and most == '+inf'
for i = 5, #ARGV do
  local key, number = ARGV[i] .. (in_stream and ':s' or ':' .. state), nil
  if in_stream then
    number = redis.pcall('XLEN', key)
  elseif all then
    number = redis.pcall('ZCARD', key)
  else
    number = redis.pcall('ZCOUNT', key, least, most)
  end
  if type(number) ~= 'number' then
    if not is_foreign(number) then return number end
    number = -1
  elseif in_stream and number > 0 then
    local active = handed_out(key)
    number = state == 'a' and active or number - active
  end
  numbers[i - 4] = number
  if number > 0 then queues, total = queues + 1, total + number end
  if enough > 0 and (total >= enough or queues >= 50) then break end
end
return numbers
