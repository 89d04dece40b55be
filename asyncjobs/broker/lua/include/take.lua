-- take, of `work`: take as many jobs as there are slots and tokens, first from the head, then new ones.
-- Sets rows, marked, waiting, wait, length. Reads active, head, summary, held.
local want = 0
if length > 0 then
  if not summary then active, head, summary = handed_out(stream) end
  if not summary then redis.pcall('XGROUP', 'CREATE', stream, 'w', '0', 'MKSTREAM') end
  waiting = length - active
  want = math.min(free, waiting)
  if set[4] then want = 0 end
  if held and want > 0 then
    want = 0
    if wait < 0 or held - now < wait then wait = held - now end
  end
  if slots > 0 then
    want = math.min(want, (slots == 1 and active == 0) and 1 + tonumber(ARGV[11]) or slots - active)
  end
end
-- @include own_limit
-- Payloads may be large, so records are read a few at a time, and more each time as long as they are small.
local budget, size, left, step = tonumber(ARGV[13]), 0, want, 16
local spare, broken = {}, false

local function next_entries(most)
  local entries = {}
  if head > 0 then
    local ids = {}
    for _, row in ipairs(redis.call('XPENDING', stream, 'w', '-', '+', math.min(most, head), 'head')) do
      ids[#ids + 1] = row[1]
    end
    head = #ids > 0 and head - #ids or 0
    if #ids > 0 then
      for _, entry in ipairs(redis.call('XCLAIM', stream, 'w', consumer, 0, unpack(ids))) do
        if entry then entries[#entries + 1] = entry end
      end
      if #entries > 0 or head > 0 then return entries, #ids end
    end
  end
  local read = redis.call('XREADGROUP', 'GROUP', 'w', consumer, 'COUNT', most, 'STREAMS', stream, '>')
  entries = read and read[1][2] or entries
  return entries, #entries
end

while left > 0 and size < budget do
  local entries, looked_at = next_entries(math.min(left, step))
  if looked_at == 0 then break end
  left = left - looked_at
  for _, entry in ipairs(entries) do
    local id = entry[2][2]
    local key = prefix .. id
    if size >= budget then
      spare[#spare + 1] = entry[1]
    else
      local job = redis.pcall('HMGET', key, 'd', 'a', 's', 't', 'o', 'k')
      if job.err and not is_foreign(job) then
        redis.call('XCLAIM', stream, 'w', 'head', 0, entry[1], 'JUSTID')
        broken = true
      elseif job[6] and job[1] and redis.call('HGET', key, 'x') ~= 'k' then
        -- Its cancel was asked for while a process held it: this process settles that, and runs nothing.
        wait, marked = 0, marked or {}
        redis.call('HSET', key, 'x', 'a', 'r', token)
        job[1] = ''
        add_row(marked, id, entry[1], job)
        marked[#marked + 1] = job[6]
      elseif job[1] and not job[6] then
        call('HSET', key, 'x', 'a', 'r', token, 'u', stamp)
        if job[3] or mark then redis.call('HSET', key, 'z', token) end
        add_row(rows, id, entry[1], job)
        size = size + #job[1]
      else
        -- An operator deleted or overwrote the entry's record, or the job was cancelled. No job is left to run, but more
        -- entries may come behind. The id of the entry alone is no record.
        wait = 0
        if not job[1] then redis.pcall('HDEL', key, 'i') end
        redis.call('XACK', stream, 'w', entry[1])
        length = length - redis.call('XDEL', stream, entry[1])
      end
    end
  end
  step = 2 * step
  if size > 0 then step = math.min(step, math.max(1, math.floor((budget - size) * #rows / (7 * size)))) end
end
if want > 0 then
  -- Their ids are lower than those of all entries that were not handed out yet, so they keep their place at the head.
  if #spare > 0 then
    spare[#spare + 1] = 'JUSTID'
    redis.call('XCLAIM', stream, 'w', 'head', 0, unpack(spare))
  end
  if size >= budget and waiting * 7 > #rows then wait = 0 end
  if broken then wait = 50 end
  if #rows == 0 and #redis.call('XPENDING', stream, 'w', '-', '+', 1, consumer) == 0 then
    redis.call('XGROUP', 'DELCONSUMER', stream, 'w', consumer)  -- reading has left the name there
  end
  if #rows < want * 7 then
    for _, one in ipairs(looked) do
      redis.call('LSET', one[1], -1, string.format('%.0f %d %.0f', one[2], (one[4] or 0) + #rows / 7, one[3]))
    end
  end
end
