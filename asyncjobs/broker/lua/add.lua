#!lua
-- add: put jobs on one queue, each into the stream or the delayed set; all jobs or none.
--
-- KEYS[1] stream     stream {j: job id}; the first add that needs it makes it, with its consumer group
-- KEYS[2] delayed    zset id → due ms
-- KEYS[3] senders    hash sender → 'number of its last add applied here, ms until which that add may be sent again'
-- KEYS[4] settings   hash, see `work`; m most waiting and delayed jobs
-- KEYS[5] groups     zset, see `register`: the group is registered first; the stream if there is no group to register
-- ARGV[1] jobs       prefix of the job hashes
-- ARGV[2] news       channel told when an idle queue got work
-- ARGV[3] group      the group id as given, or ''
-- ARGV[4] sender     the adding process, and which of its calls in flight this is
-- ARGV[5] number     of this add, rising for each sender; a repeated add is recognised by its number
-- ARGV[6] most       waiting and delayed jobs, unless the settings give a bound; '' for no bound
-- ARGV[7] followed '1': a turn of the same queue comes right behind, and publishes the news of jobs it leaves; else ''
-- ARGV[8] resent     ms in which this add may be sent again
-- ARGV[9…] per job: id · kind ('in' ms from now, 'at' ms since the epoch) · when · data · options · named ('1': id chosen by the user)
--
-- Returns {now ms, one character a job: '1' added, '0' exists, '2' refused, the queue is full; most, if any was refused}
-- Order: first the entry; then the record, which holds the entry's id; last the sender's mark. If the store refuses a
-- record (a foreign type, a slot on the move), its entry is deleted as well, so no entry is without a record.
local call, pcall, type = redis.call, redis.pcall, type
local stream, delayed, senders = KEYS[1], KEYS[2], KEYS[3]
local prefix, group, sender, number = ARGV[1], ARGV[3], ARGV[4], tonumber(ARGV[5])
-- @include clock
-- @include handed_out
-- @include news
local stamp = string.format('%.0f', now)  -- a number would be printed anew for every job, with 17 digits
local mark = sender .. ':' .. ARGV[5]
if KEYS[5] ~= stream then redis.call('ZADD', KEYS[5], stamp, group) end
local length = redis.call('XLEN', stream)
local first
local last = redis.call('HGET', senders, sender)
-- Numbers rise. The sender has given up an add with a lower number, which comes late over a lost connection.
local highest = last and tonumber(string.match(last, '^%d+') or '') or -1
local replayed = highest >= number
local answers, soonest, waiting = {}, nil, false
local most, room = tonumber(redis.call('HGET', KEYS[4], 'm') or ARGV[6]), nil
if most and not replayed then
  room = most - (length - handed_out(stream)) - redis.call('ZCARD', delayed)
end

for i = 9, #ARGV, 6 do
  local id, kind, at = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
  local key, named = prefix .. id, ARGV[i + 5] == '1'
  if replayed then
    -- A job that was refused then has no record. Nor has one that has run and is not kept: with a bound it is unclear.
    local by = (named or most) and redis.call('HMGET', key, 'd', 'q')
    local refused = most and not by[1]
    answers[#answers + 1] = refused and '2' or (by and by[1] and named and by[2] ~= mark) and '0' or '1'
  elseif named and redis.call('EXISTS', key) == 1 then
    answers[#answers + 1] = '0'
  elseif room and room <= 0 then
    answers[#answers + 1] = '2'
  else
    if room then room = room - 1 end
    answers[#answers + 1] = '1'
    if kind == 'in' and at > 0 then at = now + at end
    local entry
    if at <= now then
      if length == 0 then
        redis.pcall('XGROUP', 'CREATE', stream, 'w', '0', 'MKSTREAM')
        length = -1
      end
      entry = call('XADD', stream, '*', 'j', id)
      waiting = true
    end
    local written
    if named or not entry or ARGV[i + 4] ~= '' then
      local record = {'d', ARGV[i + 3], 't', stamp}
      if entry then record[5] = 'i'; record[6] = entry end
      if ARGV[i + 4] ~= '' then record[#record + 1] = 'o'; record[#record + 1] = ARGV[i + 4] end
      if named then record[#record + 1] = 'q'; record[#record + 1] = mark end
      written = pcall('HSET', key, unpack(record))
    else
      written = pcall('HSET', key, 'd', ARGV[i + 3], 't', stamp, 'i', entry)
    end
    if type(written) == 'table' then
      if entry then
        redis.call('XDEL', stream, entry)
        if redis.call('XLEN', stream) == 0 then redis.call('DEL', stream) end
      end
      return written
    end
    if not entry then
      if first == nil then first = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')[2] or false end
      redis.call('ZADD', delayed, at, id)
      if not soonest or at < soonest then soonest = at end
    end
  end
end

-- Written even if nothing else is, because a WAIT behind a repeated add needs a write to wait for.
local resent = tonumber(ARGV[8])
redis.call('HSET', senders, sender, string.format('%.0f %.0f', math.max(highest, number), now + resent))
if redis.call('PTTL', senders) < resent then redis.call('PEXPIRE', senders, resent) end
-- Without this, a busy queue would keep all processes that ever added to it.
if not last and redis.call('HLEN', senders) > 16 then
  local marks, over = redis.call('HGETALL', senders), {}
  for i = 1, #marks, 2 do
    local till = tonumber(string.match(marks[i + 1], ' (%d+)$'))
    if till and till < now and #over < 1000 then over[#over + 1] = marks[i] end
  end
  if #over > 0 then redis.call('HDEL', senders, unpack(over)) end
end
if waiting and ARGV[7] == '' then
  -- Processes already look at a queue with waiting jobs, so only the first waiting job is news.
  local busy = false
  if length > 0 then
    local active, _, summary = handed_out(stream)
    busy = summary and length - active > 0
  end
  if not busy then tell_news(ARGV[2], group) end
end
if soonest and (not first or soonest < tonumber(first)) then
  tell_news(ARGV[2], group, soonest - now)
end
return {now, table.concat(answers), most or -1}
