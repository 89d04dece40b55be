-- promote, of `work`: move delayed jobs that are due into the stream. Sets wait, held, had, length.
if held and held <= now then
  redis.call('HDEL', KEYS[6], 'h')
  held = nil
end
if free > 0 then
  local nearest = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')[2]
  if nearest and tonumber(nearest) <= now then
    local due = redis.call('ZRANGEBYSCORE', delayed, '-inf', now, 'LIMIT', 0, 1000)
    for _, id in ipairs(due) do
      redis.pcall('HSET', prefix .. id, 'i', redis.call('XADD', stream, '*', 'j', id))  -- somebody may have overwritten it
    end
    redis.call('ZREM', delayed, unpack(due))
    had, length = true, length + #due
    nearest = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')[2]
  end
  if nearest then wait = math.max(tonumber(nearest) - now, 0) end
end
