#!lua flags=allow-oom
-- work: settle what has finished on one queue, then take as many jobs as there are free slots and tokens.
--
-- KEYS[1] stream     stream {j: job id} · waiting = not pending, or pending for 'head'; active = pending for a process
-- KEYS[2] delayed    zset id → due ms
-- KEYS[3] bucket     list 'µs of return, tokens, tokens ever taken before'; expires when the last token is back
-- KEYS[4] completed  zset id → finished ms
-- KEYS[5] failed     zset id → finished ms
-- KEYS[6] settings   hash of what was set at run time: w windows · c concurrency · g weight · p paused · h held until ms
-- KEYS[7] listing    zset that finished jobs of the name are listed in, see `index`; the stream where they are not
-- ARGV[1] jobs       prefix of the job hashes
-- ARGV[2] news       channel told when others should look here
-- ARGV[3] done       channel told when a watched job has finished
-- ARGV[4] group      the group id as given, or ''
-- ARGV[5] consumer   the taking process
-- ARGV[6] token      of this take, unique: the fence of every job it returns
-- ARGV[7] free       slots to fill
-- ARGV[8] slots      most active over all processes, 0 for no such bound
-- ARGV[9] windows    'max:µs max:µs …' of the limiter, '' for none
-- ARGV[10] margin    µs that a start may lag behind its token
-- ARGV[11] ahead     with slots of 1: jobs beyond the first that the process may hold, to run one after the other
-- ARGV[12] tell      '1': right behind an add, which has told nobody; others hear of what is left
-- ARGV[13] bytes     of payloads after which no further job is taken
-- ARGV[14] listed    a member of the listing, without which nothing is settled; '' for none
-- ARGV[15] ccount    completed jobs kept, -1 for all        ARGV[16] cage  ms they are kept, -1 for ever
-- ARGV[17] fcount    the same for failed ones               ARGV[18] fage
-- ARGV[19…] per settled job: op · id · entry · token · body · number · keep
--   'c' completed: body result      number -      keep '' by the defaults, '0' none, 'count:age' these
--   'f' failed     body error       number -      keep the same
--   'r' again      body error or '' number delay ms  keep '1' counts an attempt, '0' does not
--   'b' back to the head, uncounted               number ms for which the queue is held, 0 for not at all
--   'h' again, from the head        body error    number ms for which the queue is held; counts an attempt
--
-- Returns {statuses, wait ms or -1, rows, windows, concurrency, weight}, the last three only of a queue with settings
--   statuses: one character a settled job: '1' done · '2' was done already · '0' stale: another try owns it · '3' gone
--   wait: until the next job is due or the next token is back
--   rows: per job taken: id · entry · data · attempts made · stalled count · added ms · options
-- Fence: a settlement counts only while the job is active under its token. New state first, XACK and XDEL last.
-- Lua does not roll back: whatever can fail (a foreign type, a job whose slot is on the move) is read before anything is
-- written, and what is met while taking goes back to the head. A stream that an operator deleted under its running jobs
-- fails nothing: outcomes count, and what is to run again is added anew.
-- Suspects: a job that stalled before is marked `z` until its handler begins: waiting for that costs it no stall.
-- Token bucket: a token returns `duration` after it was taken, so no window of `duration` sees more than `max`.
-- Cost: 15 µs a job, half of it Lua. A number that is passed to a command is printed with 17 digits, which takes longer
-- than many a command; so what is passed for every job is made a string once. Globals are looked up by name, locals not.
local call, pcall, ARGV = redis.call, redis.pcall, ARGV
local stream, delayed, bucket = KEYS[1], KEYS[2], KEYS[3]
local prefix, news, group, consumer, token = ARGV[1], ARGV[2], ARGV[4], ARGV[5], ARGV[6]
local free, slots = tonumber(ARGV[7]), tonumber(ARGV[8])
local set = redis.call('HMGET', KEYS[6], 'w', 'c', 'g', 'p', 'h')
local windows, held = set[1] or ARGV[9], tonumber(set[5])
if set[2] and slots > 0 then slots = tonumber(set[2]) or slots end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local now_us = t[1] * 1000000 + t[2]
local stamp = string.format('%.0f', now)

-- `index` went before, but what the server refuses of a pipeline keeps nothing back that lies behind it.
if ARGV[14] ~= '' and not redis.call('ZSCORE', KEYS[7], ARGV[14]) then
  return redis.error_reply('TRYAGAIN the jobs to settle are not listed under their name')
end

-- settle ------------------------------------------------------------------------------------------------
local statuses, acked, settled, released = {}, {}, 0, false
local length, known = redis.call('XLEN', stream), {}
local had = length > 0
local finished, zsets = {c = {}, f = {}}, {c = KEYS[4], f = KEYS[5]}
local first, soonest
for i = 19, #ARGV, 7 do
  local job = pcall('HMGET', prefix .. ARGV[i + 1], 'r', 'x', 'a', 'w')
  if job.err then
    if not string.find(job.err, 'WRONGTYPE', 1, true) then return job end
    job = {overwritten = true}
  end
  known[i] = job
  local list = finished[ARGV[i]]
  if list and job[1] == ARGV[i + 3] and job[2] == 'a' and ARGV[i + 6] ~= '0' then
    local n = #list
    list[n + 1], list[n + 2] = stamp, ARGV[i + 1]
  end
end
for op, list in pairs(finished) do
  if #list > 0 then redis.call('ZADD', zsets[op], unpack(list)) end
end

local function forget(zset, ids)
  local keys = {}
  for i, id in ipairs(ids) do keys[i] = prefix .. id end
  local gone = redis.pcall('UNLINK', unpack(keys))
  if type(gone) == 'number' then redis.call('ZREM', zset, unpack(ids)) end
end

local function trim(zset, count, age, most)
  if count >= 0 then
    local over = redis.call('ZCARD', zset) - count
    if over > 0 then forget(zset, redis.call('ZRANGE', zset, 0, math.min(over, most) - 1)) end
  end
  if age >= 0 then
    local old = redis.call('ZRANGEBYSCORE', zset, '-inf', now - age, 'LIMIT', 0, most)
    if #old > 0 then forget(zset, old) end
  end
end

-- How many tries a record tells of; none where somebody else has made something else of it.
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

local overrides, by_default = {}, {}
for i = 19, #ARGV, 7 do
  local op, id, entry, body, keep = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 4], ARGV[i + 6]
  local key = prefix .. id
  local job = known[i]
  local status = '1'
  if job[1] ~= ARGV[i + 3] then
    status = (job[1] or (not job.overwritten and redis.call('EXISTS', key) == 1)) and '0' or '3'
    local left = status == '3' and had and redis.call('XRANGE', stream, entry, entry)[1]
    if left and left[2][2] == id then
      -- An operator deleted or overwrote the record of a running job: its entry would look active for ever.
      acked[#acked + 1], settled = entry, settled + 1
    end
  elseif job[2] ~= 'a' then
    status = '2'
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
      redis.call('XADD', stream, '*', 'j', id)
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
    if job[3] or op == 'r' then
      attempts = string.format('%d', tries(job[3]) + ((op == 'r' and keep == '0') and 0 or 1))
    end
    if op == 'r' then
      local fields = {'x', 'w', 'a', attempts}
      if body ~= '' then
        fields[5] = 'e' .. attempts; fields[6] = body
        forget_error(key, attempts)
      end
      local delay = tonumber(ARGV[i + 5])
      redis.call('HSET', key, unpack(fields))
      if delay > 0 then
        if first == nil then first = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')[2] or false end
        redis.call('ZADD', delayed, now + delay, id)
        if not soonest or now + delay < soonest then soonest = now + delay end
      else
        redis.call('XADD', stream, '*', 'j', id)
        length, released = length + 1, true
      end
    else
      local kept = keep ~= '0'
      if kept or job[4] then
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
-- Jobs of groups are counted over all groups of their name, see `index`. Keeping none removes the job that finishes alone.
for op, list in pairs(finished) do
  if by_default[op] then
    local at = op == 'c' and 15 or 17
    trim(zsets[op], tonumber(ARGV[at]), tonumber(ARGV[at + 1]), #list + 20)
  end
end
for rule in pairs(group == '' and overrides or {}) do
  local op, count, age = string.match(rule, '^(.)(-?%d+):(-?%d+)$')
  trim(zsets[op], tonumber(count), tonumber(age), 100)  -- a beginning: the caller sees to the rest
end
local pending

local function parts(entry)
  local ms, n = string.match(entry, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(n)
end

local function after(entry, other)
  local ms, n = parts(entry)
  local other_ms, other_n = parts(other)
  return ms > other_ms or (ms == other_ms and n > other_n)
end

-- Deleting an entry by its id costs 3 µs, since its node is walked to find it; trimming walks once for all. Entries are
-- handed out in order and stay pending until they are acknowledged: what lies before the first pending one, or, where
-- none is, up to the last acknowledged one, is done with. What lies behind it is deleted one by one.
-- Where an operator deleted the stream or its group nothing is pending. A new stream may use an entry's id again.
if #acked > 0 then
  call('XACK', stream, 'w', unpack(acked))
  pending = redis.pcall('XPENDING', stream, 'w')
  if pending.err then
    pending = nil
    if had then length = length - call('XDEL', stream, unpack(acked)) end
  end
end
if pending then
  local bound = pending[2]
  if not bound then
    local last = acked[1]
    for _, entry in ipairs(acked) do
      if after(entry, last) then last = entry end
    end
    local ms, n = string.match(last, '^(%d+)-(%d+)$')
    bound = ms .. '-' .. string.format('%.0f', n + 1)
  end
  local gone = call('XTRIM', stream, 'MINID', '=', bound)
  length = length - gone
  if gone < #acked then
    local left = {}
    for _, entry in ipairs(acked) do
      if after(entry, bound) then left[#left + 1] = entry end
    end
    if #left > 0 then length = length - call('XDEL', stream, unpack(left)) end
  end
end

-- promote what is due -------------------------------------------------------------------------------------
local wait = -1
if held and held <= now then
  redis.call('HDEL', KEYS[6], 'h')
  held = nil
end
if free > 0 then
  local nearest = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')[2]
  if nearest and tonumber(nearest) <= now then
    local due = redis.call('ZRANGEBYSCORE', delayed, '-inf', now, 'LIMIT', 0, 1000)
    for _, id in ipairs(due) do redis.call('XADD', stream, '*', 'j', id) end
    redis.call('ZREM', delayed, unpack(due))
    length = length + #due
    nearest = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')[2]
  end
  if nearest then wait = math.max(tonumber(nearest) - now, 0) end
end

-- take ----------------------------------------------------------------------------------------------------
local rows = {}
local want, head, waiting = 0, 0, 0
if length > 0 then
  pending = pending or redis.pcall('XPENDING', stream, 'w')
  if pending.err then
    redis.pcall('XGROUP', 'CREATE', stream, 'w', '0', 'MKSTREAM')
    pending = redis.call('XPENDING', stream, 'w')
  end
  for _, row in ipairs(pending[4] or {}) do
    if row[1] == 'head' then head = tonumber(row[2]) end
  end
  waiting = length - pending[1] + head
  want = math.min(free, waiting)
  if set[4] then want = 0 end
  if held and want > 0 then
    want = 0
    if wait < 0 or held - now < wait then wait = held - now end
  end
  if slots > 0 then
    local active = pending[1] - head
    want = math.min(want, (slots == 1 and active == 0) and 1 + tonumber(ARGV[11]) or slots - active)
  end
end
local looked = {}
if want > 0 and #windows > 2 then
  local margin = tonumber(ARGV[10])
  local function parse(text)
    local at, n, before = string.match(text, '^(%d+) (%d+) (%d+)$')
    return tonumber(at), tonumber(n), tonumber(before)
  end
  for most, window in string.gmatch(windows, '(%d+):(%d+)') do
    local max, duration = tonumber(most), tonumber(window)
    if margin == 0 then margin = math.max(2000, math.min(50000, duration / 100)) end
    local key = #looked == 0 and bucket or bucket .. #looked
    local oldest = redis.call('LINDEX', key, 0)
    if oldest and parse(oldest) <= now_us then
      -- Ever later ones stand behind it: the first that is still out is found by halves, and what is before it goes at once.
      local low, high = 1, redis.call('LLEN', key)
      while low < high do
        local middle = math.floor((low + high) / 2)
        if parse(redis.call('LINDEX', key, middle)) <= now_us then low = middle + 1 else high = middle end
      end
      redis.call('LTRIM', key, low, -1)
      oldest = redis.call('LINDEX', key, 0)
    end
    local used, ever, latest, last = 0, 0, now_us + duration + margin, nil
    local grain = duration / 1000
    local first_at = latest
    if oldest then
      local first_before, last_at, n, before
      first_at, n, first_before = parse(oldest)
      last_at, n, before = parse(redis.call('LINDEX', key, -1))
      last = {last_at, n, before}
      ever = before + n
      used = ever - first_before
      latest = math.max(latest, last_at)
      -- A Redis clock that was set back must not close the bucket for longer than one duration.
      if first_at > now_us + 2 * (duration + margin) + 1000000 then
        redis.call('DEL', key)
        used, ever, latest = max, max, now_us + duration + margin
        redis.call('RPUSH', key, string.format('%.0f %d %.0f', latest, max, 0))
        redis.call('PEXPIRE', key, math.ceil((latest - now_us) / 1000))
        first_at, last = latest, nil
      end
    end
    -- Tokens that return within a thousandth of the window are one entry: a list is never longer than about a thousand.
    local joined = last and math.floor(last[1] / grain) == math.floor(latest / grain)
    looked[#looked + 1] = {key, latest, joined and last[3] or ever, joined and last[2]}
    want = math.max(0, math.min(want, max - used))
    if max - used < math.min(free, waiting) then
      local token_wait = math.max(1, math.ceil((first_at - now_us) / 1000))
      if wait < 0 or token_wait < wait then wait = token_wait end
    end
  end
  if want > 0 then
    for _, one in ipairs(looked) do
      if one[4] then
        redis.call('LSET', one[1], -1, string.format('%.0f %d %.0f', one[2], one[4] + want, one[3]))
      else
        redis.call('RPUSH', one[1], string.format('%.0f %d %.0f', one[2], want, one[3]))
      end
      redis.call('PEXPIRE', one[1], math.ceil((one[2] - now_us) / 1000) + 1)
    end
  end
end
-- Payloads may be large: records are read a few at a time, and more each time as long as they are small.
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
      local job = redis.pcall('HMGET', key, 'd', 'a', 's', 't', 'o')
      if job.err and not string.find(job.err, 'WRONGTYPE', 1, true) then
        redis.call('XCLAIM', stream, 'w', 'head', 0, entry[1], 'JUSTID')
        broken = true
      elseif job[1] then
        call('HSET', key, 'x', 'a', 'r', token, 'u', stamp)
        if job[3] then redis.call('HSET', key, 'z', '1') end
        local n = #rows
        rows[n + 1], rows[n + 2], rows[n + 3], rows[n + 4] = id, entry[1], job[1], job[2] or '0'
        rows[n + 5], rows[n + 6], rows[n + 7] = job[3] or '0', job[4] or '0', job[5] or ''
        size = size + #job[1]
      else
        -- An entry whose record an operator deleted or overwrote: nothing is left to run, but there may be more behind.
        wait = 0
        redis.call('XACK', stream, 'w', entry[1])
        length = length - redis.call('XDEL', stream, entry[1])
      end
    end
  end
  step = 2 * step
  if size > 0 then step = math.min(step, math.max(1, math.floor((budget - size) * #rows / (7 * size)))) end
end
if want > 0 then
  -- Their ids are lower than those of all that was not handed out yet: at the head they keep their place.
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

local tell = ARGV[12] == '1' and waiting * 7 > #rows
if tell or (waiting > 0 and #rows == 0 and (released or (settled > 0 and free == 0))) then
  redis.call('PUBLISH', news, '0|' .. group)
end
if soonest and (not first or soonest < tonumber(first)) then
  redis.call('PUBLISH', news, string.format('%.0f|', soonest - now) .. group)
end
-- A stream costs 4 to 5 kB even when it holds nothing.
if had and length <= 0 then redis.call('DEL', stream) end
if set[1] or set[2] or set[3] then
  return {table.concat(statuses), wait, rows, set[1] or '', set[2] or '', set[3] or ''}
end
return {table.concat(statuses), wait, rows}
