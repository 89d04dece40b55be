#!lua
-- spend: take a token again for a job that starts later than its token allows for.
--
-- KEYS[1] bucket     as in `work`
-- ARGV[1] duration   µs until the token comes back
-- ARGV[2] margin     µs that the start may lag
--
-- Returns 1. Only ever makes the bucket slower, so sending it twice is safe.
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local latest, ever = now + ARGV[1] + ARGV[2], 0
local last = redis.call('LINDEX', KEYS[1], -1)
if last then
  local at, n, before = string.match(last, '^(%d+) (%d+) (%d+)$')
  latest = math.max(latest, tonumber(at))
  ever = tonumber(before) + tonumber(n)
end
redis.call('RPUSH', KEYS[1], string.format('%.0f 1 %.0f', latest, ever))
redis.call('PEXPIRE', KEYS[1], math.ceil((latest - now) / 1000) + 1)
return 1
