#!lua flags=allow-oom
-- trim: apply a job name's retention to one queue that may be idle.
--
-- KEYS[1] completed · KEYS[2] failed
-- ARGV[1] jobs       prefix of the job hashes
-- ARGV[2] ccount     completed jobs kept, -1 for all        ARGV[3] cage  ms they are kept, -1 for ever
-- ARGV[4] fcount     the same for failed ones               ARGV[5] fage
--
-- Returns how many records were deleted; at most 2000, so call again until it is 0
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local gone = 0
for i = 1, 2 do
  local count, age = tonumber(ARGV[2 * i]), tonumber(ARGV[2 * i + 1])
  local over = count >= 0 and redis.call('ZCARD', KEYS[i]) - count or 0
  local ids = {}
  if over > 0 then
    ids = redis.call('ZRANGE', KEYS[i], 0, math.min(over, 1000) - 1)
  elseif age >= 0 then
    ids = redis.call('ZRANGEBYSCORE', KEYS[i], '-inf', now - age, 'LIMIT', 0, 1000)
  end
  if #ids > 0 then
    local keys = {}
    for j, id in ipairs(ids) do keys[j] = ARGV[1] .. id end
    redis.call('UNLINK', unpack(keys))
    redis.call('ZREM', KEYS[i], unpack(ids))
    gone = gone + #ids
  end
end
return gone
