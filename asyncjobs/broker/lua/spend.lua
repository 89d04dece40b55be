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
local margin, looked, wait = tonumber(ARGV[2]), {}, 0
for most, window in string.gmatch(redis.call('HGET', KEYS[2], 'w') or ARGV[1], '(%d+):(%d+)') do
  local key = #looked == 0 and KEYS[1] or KEYS[1] .. #looked
  local latest, ever = now + window + margin, 0
  local last = redis.call('LINDEX', key, -1)
  if last then
    local at, n, before = string.match(last, '^(%d+) (%d+) (%d+)$')
    latest = math.max(latest, tonumber(at))
    ever = tonumber(before) + tonumber(n)
  end
  if last and ARGV[3] ~= '1' then
    local oldest = redis.call('LINDEX', key, 0)
    while oldest and tonumber(string.match(oldest, '^%d+')) <= now do
      redis.call('LPOP', key)
      oldest = redis.call('LINDEX', key, 0)
    end
    if oldest then
      local at, _, before = string.match(oldest, '^(%d+) (%d+) (%d+)$')
      if ever - tonumber(before) >= tonumber(most) then
        wait = math.max(wait, 1, math.ceil(math.min(tonumber(at) - now, 2 * (window + margin)) / 1000))
      end
    end
  end
  looked[#looked + 1] = {key, latest, ever}
end
if wait > 0 then return wait end
for _, one in ipairs(looked) do
  redis.call('RPUSH', one[1], string.format('%.0f 1 %.0f', one[2], one[3]))
  redis.call('PEXPIRE', one[1], math.ceil((one[2] - now) / 1000) + 1)
end
return 0
