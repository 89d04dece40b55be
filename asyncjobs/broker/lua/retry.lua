#!lua
-- retry: failed or cancelled jobs of one queue wait again, and go on counting their attempts or begin anew.
--
-- KEYS[1] stream     stream {j: job id}
-- KEYS[2] delayed    zset id → due ms
-- KEYS[3] failed     zset id → finished ms
-- KEYS[4] cancelled  zset id → finished ms
-- ARGV[1] jobs       prefix of the job hashes
-- ARGV[2] news       channel told that there is work
-- ARGV[3] group      the group id as given, or ''
-- ARGV[4] act        unique: a job that this act has reached already is left alone
-- ARGV[5] entry      what the record tells of the act: a JSON object without its '{' and its instant
-- ARGV[6] reset      '1': its attempts count from 0 again, and its errors stay as those of before
-- ARGV[7…] ids
--
-- Returns {now ms, one character a job: '1' waits again · '2' did so before by this act · else its state, see `standing`}
-- The stalls that it had are forgotten: one that failed by them would fail again at the next one.
local stream, delayed, prefix, act = KEYS[1], KEYS[2], ARGV[1], ARGV[4]
-- @include clock
local stamp = string.format('%.0f', now)
-- @include foreign
-- @include standing
-- @include requeue
-- @include news
-- @include acted

-- Errors of attempts that count no more: `E1`, `E2`, … each with the number of its attempt in front; the last eleven.
local function put_errors_aside(key)
  local numbers, last = {}, 0
  for _, field in ipairs(redis.call('HKEYS', key)) do
    local n = string.match(field, '^e(%d+)$')
    if n then numbers[#numbers + 1] = tonumber(n) end
    last = math.max(last, tonumber(string.match(field, '^E(%d+)$') or 0))
  end
  table.sort(numbers)
  for _, n in ipairs(numbers) do
    local field = 'e' .. string.format('%.0f', n)
    last = last + 1
    redis.call('HSET', key, 'E' .. string.format('%.0f', last), string.format('%.0f', n) .. ' ' .. redis.call('HGET', key, field))
    redis.call('HDEL', key, field, 'E' .. string.format('%.0f', last - 11))
  end
end

return reach(7, {f = KEYS[3], k = KEYS[4]}, function(key)
  redis.call('PERSIST', key)
  redis.call('HDEL', key, 'x', 'F', 'k', 's', 'z', 'v')
  if ARGV[6] == '1' then
    redis.call('HDEL', key, 'a')
    put_errors_aside(key)
  end
end)
