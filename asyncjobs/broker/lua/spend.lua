#!lua flags=allow-oom
-- spend: take a token again for a job that starts later than its first token allows.
--
-- KEYS[1] bucket     as in `work`
-- KEYS[2] settings   as in `work`
-- ARGV[1] windows    'max:µs max:µs …' of the limiter, unless the settings have others
-- ARGV[2] margin     µs that the start may lag
-- ARGV[3] out        '1' if the first token is still out, so the job keeps its place; else another start may have it
--
-- Returns 0 taken · ms until a token is back
-- A repeated call can only make the bucket slower, so it is safe.
-- @include clock
-- @include bucket
local margin, looked, wait = tonumber(ARGV[2]), {}, 0
for most, window in string.gmatch(redis.call('HGET', KEYS[2], 'w') or ARGV[1], '(%d+):(%d+)') do
  local key = #looked == 0 and KEYS[1] or KEYS[1] .. #looked
  local latest, ever = now_us + window + margin, 0
  local last, joined = redis.call('LINDEX', key, -1), nil
  if last then
    local at, n, before = parse(last)
    latest = math.max(latest, at)
    ever = before + n
    if is_one_entry(at, latest, window) then ever, joined = before, n end
  end
  local oldest = last and ARGV[3] ~= '1' and drop_returned(key)
  if last and ARGV[3] ~= '1' and not oldest then ever, joined = 0, nil end
  if oldest then
    local at, _, before = parse(oldest)
    if ever + (joined or 0) - before >= tonumber(most) then
      wait = math.max(wait, 1, math.ceil(math.min(at - now_us, 2 * (window + margin)) / 1000))
    end
  end
  looked[#looked + 1] = {key, latest, ever, joined}
end
if wait > 0 then return wait end
for _, one in ipairs(looked) do take_tokens(one[1], one[2], 1, one[3], one[4]) end
return 0
