-- gate_state: how full a shared limit is, see `admit`; nothing is changed. Needs `clock`.
--
-- Returns {jobs that run under it, of each window the tokens that are out and µs when the first is back or '', …}; the word
-- of a process that has been silent for longer than `lease` ms does not count.
local function gate_state(gate, lease)
  local rows, running, out = redis.call('HGETALL', gate), 0, {}
  for i = 1, #rows, 2 do
    local n, at = string.match(rows[i + 1], '^(%d+) (%d+)$')
    if string.sub(rows[i], 1, 2) == 'h ' and n and now - tonumber(at) <= lease then running = running + tonumber(n) end
    local place = string.match(rows[i], '^u(%d)$')
    if place then out[tonumber(place)] = tonumber(rows[i + 1]) or 0 end
  end
  local reply = {running}
  for place = 1, 4 do
    local zset, returned = gate .. ':' .. place, 0
    for _, member in ipairs(redis.call('ZRANGEBYSCORE', zset, '-inf', now_us, 'LIMIT', 0, 1000)) do
      returned = returned + (tonumber(string.match(member, ' (%d+)$')) or 0)
    end
    local first = redis.call('ZRANGEBYSCORE', zset, string.format('(%.0f', now_us), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
    reply[2 * place] = first and math.max(0, (out[place] or 0) - returned) or 0
    reply[2 * place + 1] = first or ''
  end
  return reply
end
