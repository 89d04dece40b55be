-- trim: delete the oldest finished jobs beyond a count and an age, `most` at most. Returns how many. Needs `clock`.
local function trim(zset, prefix, count, age, most)
  local gone = 0
  local function forget(ids)
    if #ids == 0 then return end
    local keys = {}
    for i, id in ipairs(ids) do keys[i] = prefix .. id end
    if type(redis.pcall('UNLINK', unpack(keys))) == 'number' then  -- a key may be on the move to another slot
      redis.call('ZREM', zset, unpack(ids))
      gone = gone + #ids
    end
  end
  local over = count >= 0 and redis.call('ZCARD', zset) - count or 0
  if over > 0 then forget(redis.call('ZRANGE', zset, 0, math.min(over, most) - 1)) end
  if age >= 0 and gone < most then
    forget(redis.call('ZRANGEBYSCORE', zset, '-inf', now - age, 'LIMIT', 0, most - gone))
  end
  return gone
end
