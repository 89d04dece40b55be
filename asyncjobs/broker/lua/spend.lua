#!lua
-- spend: take a token again for a job that starts later than its token allows for.
--
-- KEYS[1] bucket     as in `work`
-- ARGV[1] duration   µs until the token comes back
-- ARGV[2] margin     µs that the start may lag
-- ARGV[3] max        tokens of the bucket, where the first one may be back by now and another start have it; 0 where
--                    it is still out, so that its place is ours
--
-- Returns 0 taken · ms until a token is back
-- Only ever makes the bucket slower, so sending it twice is safe.
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local latest, ever = now + ARGV[1] + ARGV[2], 0
local last = redis.call('LINDEX', KEYS[1], -1)
if last then
  local at, n, before = string.match(last, '^(%d+) (%d+) (%d+)$')
  latest = math.max(latest, tonumber(at))
  ever = tonumber(before) + tonumber(n)
end
if last and tonumber(ARGV[3]) > 0 then
  local oldest = redis.call('LINDEX', KEYS[1], 0)
  while oldest and tonumber(string.match(oldest, '^%d+')) <= now do
    redis.call('LPOP', KEYS[1])
    oldest = redis.call('LINDEX', KEYS[1], 0)
  end
  if oldest then
    local at, _, before = string.match(oldest, '^(%d+) (%d+) (%d+)$')
    if ever - tonumber(before) >= tonumber(ARGV[3]) then
      return math.max(1, math.ceil((math.min(tonumber(at) - now, 2 * (ARGV[1] + ARGV[2]))) / 1000))
    end
  end
end
redis.call('RPUSH', KEYS[1], string.format('%.0f 1 %.0f', latest, ever))
redis.call('PEXPIRE', KEYS[1], math.ceil((latest - now) / 1000) + 1)
return 0
