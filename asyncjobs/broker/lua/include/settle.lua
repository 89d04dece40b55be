-- settle, of `work`: apply the outcomes of the tries that have ended.
-- A job whose cancel was asked for must not run again: an outcome that would run it is refused, and settled as 'k' instead.
-- Sets statuses, acked, settled, released, held, length, soonest, first, finished, by_default, overrides.
local known = {}
for i = 20, #ARGV, 7 do
  local op, job = ARGV[i], nil
  if op == 'c' or op == 'f' then  -- it has finished first
    job = pcall('HMGET', prefix .. ARGV[i + 1], 'r', 'x', 'a', 'w')
  else
    job = pcall('HMGET', prefix .. ARGV[i + 1], 'r', 'x', 'a', 'w', 'k')
    if op == 'k' and not finished.k then
      finished.k, zsets.k = {}, string.sub(prefix, 1, -3) .. 'k'
      redis.call('ZCARD', zsets.k)
    end
  end
  if job.err then
    if not is_foreign(job) then return job end
    job = {overwritten = true}
  end
  known[i] = job
  local list = finished[op]
  if list and job[1] == ARGV[i + 3] and job[2] == 'a' and ARGV[i + 6] ~= '0' then
    local n = #list
    list[n + 1], list[n + 2] = stamp, ARGV[i + 1]
  end
end
for op, list in pairs(finished) do
  if #list > 0 then redis.call('ZADD', zsets[op], unpack(list)) end
end

-- The number of tries in a record; 0 if another program has overwritten the record.
local function tries(text)
  local n = text and tonumber(text)
  return n and n >= 0 and n < 1e15 and n % 1 == 0 and n or 0
end

-- The first error of a job is kept, and its last ten.
local function forget_error(key, attempts)
  local n = tonumber(attempts) - 10
  local least = math.max(1, n - 100)
  while n > least and redis.call('HDEL', key, 'e' .. n) == 1 do n = n - 1 end
end

for i = 20, #ARGV, 7 do
  local op, id, entry, body, keep = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 4], ARGV[i + 6]
  local key = prefix .. id
  local job = known[i]
  local status = '1'
  if job[1] ~= ARGV[i + 3] then
    status = (job[1] or (not job.overwritten and redis.call('EXISTS', key) == 1)) and '0' or '3'
    local left = status == '3' and had and redis.call('XRANGE', stream, entry, entry)[1]
    if left and left[2][2] == id then
      -- An operator deleted or overwrote a running job's record. Its entry goes, else it would look active for ever.
      acked[#acked + 1], settled = entry, settled + 1
    end
  elseif job[2] ~= 'a' then
    status = '2'
  elseif job[5] and op ~= 'k' then
    status = '4'
  elseif op == 'b' or op == 'h' then
    local fields, hold = {'x', 'w'}, tonumber(ARGV[i + 5])
    if op == 'h' then
      local attempts = tries(job[3]) + 1
      fields = {'x', 'w', 'a', attempts, 'e' .. attempts, body}
      forget_error(key, attempts)
    end
    redis.call('HSET', key, unpack(fields))
    if redis.pcall('XCLAIM', stream, 'w', 'head', 0, entry, 'JUSTID').err then
      if had then redis.call('XDEL', stream, entry) end
      redis.call('HSET', key, 'i', redis.call('XADD', stream, '*', 'j', id))
      length = redis.call('XLEN', stream)
    end
    if hold > 0 and now + hold > (held or 0) then
      held = now + hold
      redis.call('HSET', KEYS[6], 'h', string.format('%.0f', held))
    end
    settled, released = settled + 1, true
  else
    settled = settled + 1
    acked[#acked + 1] = entry
    local attempts = '1'
    if job[3] or op == 'r' or op == 'k' then
      local uncounted = (op == 'r' and keep == '0') or (op == 'k' and ARGV[i + 5] == '0')
      attempts = string.format('%d', tries(job[3]) + (uncounted and 0 or 1))
    end
    if op == 'r' then
      local fields = {'x', 'w', 'a', attempts}
      if body ~= '' then
        fields[5] = 'e' .. attempts; fields[6] = body
        forget_error(key, attempts)
      end
      local delay = tonumber(ARGV[i + 5])
      if delay <= 0 then
        fields[#fields + 1] = 'i'
        fields[#fields + 1] = redis.call('XADD', stream, '*', 'j', id)
      end
      redis.call('HSET', key, unpack(fields))
      if delay > 0 then
        if first == nil then first = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')[2] or false end
        redis.call('ZADD', delayed, now + delay, id)
        if not soonest or now + delay < soonest then soonest = now + delay end
      else
        length, released = length + 1, true
      end
    else
      local kept = keep ~= '0'
      if op == 'k' then
        body = job[5] or body
        if kept or job[4] then
          redis.call('HSET', key, 'x', 'k', 'a', attempts, 'F', stamp, 'k', body)
        end
      elseif kept or job[4] then
        if body == '' then
          call('HSET', key, 'x', op, 'a', attempts, 'F', stamp)
        else
          call('HSET', key, 'x', op, 'a', attempts, 'F', stamp, op == 'c' and 'v' or 'e' .. attempts, body)
          if op == 'f' then forget_error(key, attempts) end
        end
      end
      if kept then
        if keep == '' then by_default[op] = true else overrides[op .. keep] = true end
      elseif job[4] then
        redis.call('PEXPIRE', key, 60000)
      else
        redis.call('UNLINK', key)
      end
      if job[4] then redis.call('PUBLISH', ARGV[3], cmsgpack.pack({key, op, body})) end
    end
  end
  statuses[#statuses + 1] = status
end
