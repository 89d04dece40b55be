#!lua flags=no-writes
-- page_sorted: the jobs of a sorted set that follow a place, in order, with their records.
--
-- KEYS[1] jobs       zset: delayed ones by due ms, finished ones by finished ms, or the listing of those of all groups
-- ARGV[1] jobs       prefix of the job hashes; '' for a listing, whose records may lie elsewhere
-- ARGV[2] state      'd' delayed, else what the records say: 'c' 'f' 'k'
-- ARGV[3] whole      '1': the whole records; '': who they are and when
-- ARGV[4] filter     see `look`
-- ARGV[5] down       '1': from the highest score to the lowest
-- ARGV[6] score      of the place, '' for the beginning      ARGV[7] member of the place
-- ARGV[8] least      score                                   ARGV[9] most
-- ARGV[10] looks     most members looked at                  ARGV[11] finds  most jobs returned
-- ARGV[12] bytes     that the records may have together   ARGV[13] one    '1': the first of them may have more
--
-- Returns {looked at, or -1 where the key is of a foreign type; 1 if there is more; score and member of the next place;
-- {member, score, {field, value …}} …}
-- A place is what was looked at last, whether it is still there or not: members of one score stand in the order of their
-- bytes, so it is found by halves. A bare rank would move with every job that is trimmed, a bare score is shared by many.
-- @include foreign
local zset, prefix, state, whole, filter, down = KEYS[1], ARGV[1], ARGV[2], ARGV[3] == '1', ARGV[4], ARGV[5] == '1'
local score, member, least, most = ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local looks, finds, budget, may_burst = tonumber(ARGV[10]), tonumber(ARGV[11]), tonumber(ARGV[12]), ARGV[13] == '1'
-- @include look

-- By bytes, as the server sorts them; Lua's own comparison follows the locale.
local function precedes(one, other)
  for i = 1, math.min(#one, #other) do
    local a, b = string.byte(one, i), string.byte(other, i)
    if a ~= b then return a < b end
  end
  return #one < #other
end

-- How many members stand before the place, and whether that is one itself.
local function before()
  if redis.call('ZSCORE', zset, member) == score then return redis.call('ZRANK', zset, member), 1 end
  local low = redis.call('ZCOUNT', zset, '-inf', '(' .. score)
  local high = low + redis.call('ZCOUNT', zset, score, score)
  while low < high do
    local middle = math.floor((low + high) / 2)
    if precedes(redis.call('ZRANGE', zset, middle, middle)[1], member) then low = middle + 1 else high = middle end
  end
  return low, 0
end

local size = redis.pcall('ZCARD', zset)
if type(size) ~= 'number' then
  if is_foreign(size) then return {-1, 0, '', '', {}} end
  return size
end
local first = least == '-inf' and 0 or redis.call('ZCOUNT', zset, '-inf', '(' .. least)
local last = (most == '+inf' and size or redis.call('ZCOUNT', zset, '-inf', most)) - 1
if score ~= '' then
  local n, there = before()
  if down then last = math.min(last, n - 1) else first = math.max(first, n + there) end
end
local left = last - first + 1
local take = math.max(0, math.min(left, looks))
local from = down and last - take + 1 or first
-- A score is printed with 17 digits, which takes as long as to look for a text: a search asks for those of what it finds.
local step = wanted and 1 or 2
local listed = {}
if take > 0 and wanted then
  listed = redis.call('ZRANGE', zset, from, from + take - 1)
elseif take > 0 then
  listed = redis.call('ZRANGE', zset, from, from + take - 1, 'WITHSCORES')
end
local looked, bytes, found, i = 0, 0, {}, down and #listed - step + 1 or 1
if down then step = -step end
while looked < take and #found < finds and bytes < budget do
  local fields, more = {}, 0
  if prefix ~= '' then fields, more = look(prefix .. listed[i]) end
  bytes = bytes + more
  if fields then
    if bytes > budget and not (may_burst and looked == 0) then break end
    found[#found + 1] = {listed[i], listed[i + 1], fields}
    if wanted then found[#found][2] = redis.call('ZSCORE', zset, listed[i]) end
  end
  looked, member = looked + 1, listed[i]
  i = i + step
end
if looked > 0 then score = redis.call('ZSCORE', zset, member) end
return {looked, looked < left and 1 or 0, score, member, found}
