#!lua flags=no-writes
-- backlog: how fast jobs of a queue come and how long they run, by what it holds at this instant.
--
-- KEYS[1] stream
-- KEYS[2] completed  zset id → finished ms
-- ARGV[1] jobs       prefix of the job hashes
-- ARGV[2] span       ms before now in which jobs that came are counted
--
-- Returns {waiting, active, jobs that came, ms in which they did, jobs that ran, ms that they ran together}
-- Jobs leave in the order in which they came: all that came since the first that waits are there, as far as one looks. That
-- one may have come with many at once, so half of the time since then is left out, unless it came long ago.
-- @include clock
-- @include handed_out
-- @include delivered
local length = redis.call('XLEN', KEYS[1])
local active, _, summary = handed_out(KEYS[1])
local came, over = 0, 0
if length > active then
  local first = redis.call('XRANGE', KEYS[1], '(' .. last_delivered(KEYS[1], summary), '+', 'COUNT', 1)[1]
  local began = first and tonumber(string.match(first[1], '^%d+')) or now
  local since = math.max(now - tonumber(ARGV[2]), math.ceil((began + now) / 2))
  local rows = redis.call('XREVRANGE', KEYS[1], '+', string.format('%.0f', since), 'COUNT', 1000)
  came, over = #rows, now - since
  if came == 1000 then over = now - tonumber(string.match(rows[came][1], '^%d+')) end
end
local ran, took = 0, 0
for _, id in ipairs(redis.call('ZRANGE', KEYS[2], -50, -1)) do
  local job = redis.call('HMGET', ARGV[1] .. id, 'u', 'F')
  local began, ended = tonumber(job[1] or ''), tonumber(job[2] or '')
  if began and ended and ended >= began then ran, took = ran + 1, took + ended - began end
end
return {length - active, active, came, over, ran, took}
