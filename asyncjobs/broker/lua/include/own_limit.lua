-- own_limit, of `take`: take tokens of the queue's own limiter for its jobs. Sets want, wait, looked. Needs `bucket`.
local looked = {}
if want > 0 and #windows > 2 then
  local margin = tonumber(ARGV[10])
  for most, window in string.gmatch(windows, '(%d+):(%d+)') do
    local max, duration = tonumber(most), tonumber(window)
    if margin == 0 then margin = math.max(2000, math.min(50000, duration / 100)) end
    local key = #looked == 0 and bucket or bucket .. #looked
    local oldest = drop_returned(key)
    local used, ever, latest, last = 0, 0, now_us + duration + margin, nil
    local first_at = latest
    if oldest then
      local first_before, last_at, n, before
      first_at, n, first_before = parse(oldest)
      last_at, n, before = parse(redis.call('LINDEX', key, -1))
      last = {last_at, n, before}
      ever = before + n
      used = ever - first_before
      latest = math.max(latest, last_at)
      -- If Redis's clock was set back, the bucket must not stay closed for longer than one duration.
      if first_at > now_us + 2 * (duration + margin) + 1000000 then
        redis.call('DEL', key)
        used, ever, latest = max, max, now_us + duration + margin
        take_tokens(key, latest, max, 0)
        first_at, last = latest, nil
      end
    end
    local joined = last and is_one_entry(last[1], latest, duration)
    looked[#looked + 1] = {key, latest, joined and last[3] or ever, joined and last[2]}
    want = math.max(0, math.min(want, max - used))
    if max - used < math.min(free, waiting) then
      local token_wait = math.max(1, math.ceil((first_at - now_us) / 1000))
      if wait < 0 or token_wait < wait then wait = token_wait end
    end
  end
  if want > 0 then
    for _, one in ipairs(looked) do take_tokens(one[1], one[2], want, one[3], one[4]) end
  end
end
