-- bucket: a list of 'µs of return, tokens, tokens ever taken before', in the order of return. Needs `clock`.
local function parse(text)
  local at, n, before = string.match(text, '^(%d+) (%d+) (%d+)$')
  return tonumber(at), tonumber(n), tonumber(before)
end

-- Tokens stand in the order of return. So the first token that is still out is found by halves, and all before it are
-- removed at once. Returns the first entry that is left.
local function drop_returned(key)
  local oldest = redis.call('LINDEX', key, 0)
  if not oldest or parse(oldest) > now_us then return oldest end
  local low, high = 1, redis.call('LLEN', key)
  while low < high do
    local middle = math.floor((low + high) / 2)
    if parse(redis.call('LINDEX', key, middle)) <= now_us then low = middle + 1 else high = middle end
  end
  redis.call('LTRIM', key, low, -1)
  return redis.call('LINDEX', key, 0)
end

-- Tokens that return within a thousandth of the window are one entry: a list is never longer than about a thousand.
local function is_one_entry(at, other, duration)
  local grain = duration / 1000
  return math.floor(at / grain) == math.floor(other / grain)
end

-- Take `n` tokens. `joined`: the tokens of the last entry, if the new ones join it.
local function take_tokens(key, at, n, ever, joined)
  if joined then
    redis.call('LSET', key, -1, string.format('%.0f %d %.0f', at, joined + n, ever))
  else
    redis.call('RPUSH', key, string.format('%.0f %d %.0f', at, n, ever))
  end
  redis.call('PEXPIRE', key, math.ceil((at - now_us) / 1000) + 1)
end
