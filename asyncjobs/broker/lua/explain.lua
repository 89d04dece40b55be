#!lua flags=no-writes
-- explain: what holds back one job of a queue, or the next one, as far as the queue knows.
--
-- KEYS[1] stream
-- KEYS[2] delayed    zset id → due ms
-- KEYS[3] settings   hash, see `work`
-- KEYS[4] bucket     list, see `bucket`; those of further windows beside it
-- ARGV[1] jobs       prefix of the job hashes
-- ARGV[2] id         of the job; '' for the next one
-- ARGV[3] most       jobs in front of it, or behind it, that are counted
--
-- Returns {now µs, job, settings w c p h, {waiting, active, delayed}, {id of a job that runs, …}, tokens}
--   job: {} where there is none, else {id, state, due ms or '', stalled count, '1' if it was taken and has not begun,
--   jobs in front or -1, 1 if these are all, id of the first at the head or '', tries that that one has made}
--   tokens: of each window those that are out, and µs when the first is back or ''
-- @include clock
-- @include handed_out
-- @include delivered
-- @include bucket
local stream, prefix, id, most = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
local length = redis.call('XLEN', stream)
local active, head, summary = handed_out(stream)
local last = last_delivered(stream, summary)

local function id_at(entry)
  local found = redis.call('XRANGE', stream, entry, entry)[1]
  return found and found[2][2]
end

local first = head > 0 and redis.call('XPENDING', stream, 'w', '-', '+', 1, 'head')[1]
local first_id = first and id_at(first[1])
local entry
if id == '' then
  entry = first and first[1] or (redis.call('XRANGE', stream, '(' .. last, '+', 'COUNT', 1)[1] or {})[1]
  id = entry and id_at(entry) or redis.call('ZRANGE', KEYS[2], 0, 0)[1]
end

-- Where a job waits: by what its record says, else, where an earlier release added it, about the instant of that.
local function entry_of(record)
  if record[5] and id_at(record[5]) == id then return record[5] end
  local added = tonumber(record[4])
  if not added then return nil end
  local from, to = string.format('%.0f', added), string.format('%.0f', added + 1)
  for _, one in ipairs(redis.call('XRANGE', stream, from, to, 'COUNT', 500)) do
    if one[2][2] == id then return one[1] end
  end
end

-- How many stand in front of an entry: counted from the first, else from the last, `most` of them; and whether that is all.
local function in_front(where)
  local pending = summary and redis.call('XPENDING', stream, 'w', where, where, 1)[1]
  local before = summary and #redis.call('XPENDING', stream, 'w', '-', '(' .. where, most, 'head') or 0
  if pending then return before, before < most end
  if before < most then
    before = before + #redis.call('XRANGE', stream, '(' .. last, '(' .. where, 'COUNT', most - before)
  end
  if before < most then return before, true end
  local behind = #redis.call('XREVRANGE', stream, '+', '(' .. where, 'COUNT', most)
  if behind < most then return length - active - 1 - behind, true end
  return before, false
end

local job = {}
if id then
  local record = redis.call('HMGET', prefix .. id, 'x', 's', 'r', 't', 'i', 'z', 'd')
  if record[7] then
    local due = redis.call('ZSCORE', KEYS[2], id)
    local front, exact = -1, true
    if record[1] ~= 'a' and not due then
      entry = entry or entry_of(record)
      if entry then front, exact = in_front(entry) end
    end
    local mark = record[6] and (record[6] == record[3] or due) and '1' or ''
    local tries = first_id and redis.call('HGET', prefix .. first_id, 'a')
    job = {id, record[1] or '', due or '', record[2] or '0', mark, front, exact and 1 or 0, first_id or '', tries or '0'}
  end
end
local running = {}
if active > 0 then
  for _, row in ipairs(redis.call('XPENDING', stream, 'w', '-', '+', 50)) do
    if row[2] ~= 'head' and #running < 3 then running[#running + 1] = id_at(row[1]) end
  end
end
local tokens = {}
for place = 0, 3 do
  local key = place == 0 and KEYS[4] or KEYS[4] .. place
  local low, high = 0, redis.call('LLEN', key)
  local many = high
  while low < high do
    local middle = math.floor((low + high) / 2)
    if parse(redis.call('LINDEX', key, middle)) <= now_us then low = middle + 1 else high = middle end
  end
  if low < many then
    local first_at, _, before = parse(redis.call('LINDEX', key, low))
    local _, n, ever = parse(redis.call('LINDEX', key, -1))
    tokens[2 * place + 1], tokens[2 * place + 2] = ever + n - before, string.format('%.0f', first_at)
  else
    tokens[2 * place + 1], tokens[2 * place + 2] = 0, ''
  end
end
local set = redis.call('HMGET', KEYS[3], 'w', 'c', 'p', 'h')
for i = 1, 4 do set[i] = set[i] or '' end
local counts = {length - active, active, redis.call('ZCARD', KEYS[2])}
return {string.format('%.0f', now_us), job, set, counts, running, tokens}
