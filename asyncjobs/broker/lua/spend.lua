#!lua flags=allow-oom
-- spend: take a token again for a job that starts later than its token allows for.
--
-- KEYS[1] bucket     as in `work`
-- KEYS[2] settings   as in `work`
-- ARGV[1] windows    'max:µs max:µs …' of the limiter, unless the settings have others
-- ARGV[2] margin     µs that the start may lag
-- ARGV[3] out        '1' where the first token is still out, so that its place is ours; else another start may have it
--
-- Returns 0 taken · ms until a token is back
-- Only ever makes the bucket slower, so sending it twice is safe.
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local function parse(text)
  local at, n, before = string.match(text, '^(%d+) (%d+) (%d+)$')
  return tonumber(at), tonumber(n), tonumber(before)
end
local margin, looked, wait = tonumber(ARGV[2]), {}, 0
for most, window in string.gmatch(redis.call('HGET', KEYS[2], 'w') or ARGV[1], '(%d+):(%d+)') do
  local key = #looked == 0 and KEYS[1] or KEYS[1] .. #looked
  local latest, ever = now + window + margin, 0
  local last, grain, joined = redis.call('LINDEX', key, -1), window / 1000, nil
  if last then
    local at, n, before = parse(last)
    latest = math.max(latest, at)
    ever = before + n
    if math.floor(at / grain) == math.floor(latest / grain) then ever, joined = before, n end
  end
  local oldest = last and ARGV[3] ~= '1' and redis.call('LINDEX', key, 0)
  if oldest and parse(oldest) <= now then
    local low, high = 1, redis.call('LLEN', key)
    while low < high do
      local middle = math.floor((low + high) / 2)
      if parse(redis.call('LINDEX', key, middle)) <= now then low = middle + 1 else high = middle end
    end
    redis.call('LTRIM', key, low, -1)
    oldest = redis.call('LINDEX', key, 0)
    if not oldest then ever, joined = 0, nil end
  end
  if oldest then
    local at, _, before = parse(oldest)
    if ever + (joined or 0) - before >= tonumber(most) then
      wait = math.max(wait, 1, math.ceil(math.min(at - now, 2 * (window + margin)) / 1000))
    end
  end
  looked[#looked + 1] = {key, latest, ever, joined}
end
if wait > 0 then return wait end
for _, one in ipairs(looked) do
  if one[4] then
    redis.call('LSET', one[1], -1, string.format('%.0f %d %.0f', one[2], one[4] + 1, one[3]))
  else
    redis.call('RPUSH', one[1], string.format('%.0f 1 %.0f', one[2], one[3]))
  end
  redis.call('PEXPIRE', one[1], math.ceil((one[2] - now) / 1000) + 1)
end
return 0
