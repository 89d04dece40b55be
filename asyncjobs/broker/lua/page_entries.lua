#!lua flags=no-writes
-- page_entries: the jobs of a stream that wait, or that processes hold, which follow a place, in order, with their records.
--
-- KEYS[1] stream
-- ARGV[1] jobs       prefix of the job hashes
-- ARGV[2] state      'w' waiting, 'a' active
-- ARGV[3] whole      '1': the whole records; '': who they are and when
-- ARGV[4] filter     see `look`
-- ARGV[5] down       '1': from the last entry to the first
-- ARGV[6] place      the entry looked at last; '' for the beginning
-- ARGV[7] least      '-' or ms                               ARGV[8] most  '+' or ms, of the entries
-- ARGV[9] looks      most entries looked at                  ARGV[10] finds  most jobs returned
-- ARGV[11] bytes     that the records may have together      ARGV[12] one  '1': the first of them may have more
--
-- Returns {looked at, or -1 where the key is of a foreign type; 1 if there is more; the next place;
-- {job id, entry, {field, value …}} …}
-- Up to the group's last delivered entry all that is left is pending: for 'head' it waits, for a process it is active.
-- What lies behind waits. So the one is found without a walk past the other, but for the pieces in which both stand.
-- @include foreign
local stream, prefix, state, whole, filter, down = KEYS[1], ARGV[1], ARGV[2], ARGV[3] == '1', ARGV[4], ARGV[5] == '1'
local place, least, most = ARGV[6], ARGV[7], ARGV[8]
local looks, finds, budget, may_burst = tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[11]), ARGV[12] == '1'
-- @include look
-- @include handed_out
-- @include delivered
local length = redis.pcall('XLEN', stream)
if type(length) ~= 'number' then
  if is_foreign(length) then return {-1, 0, '', {}} end
  return length
end
if length == 0 then return {0, 0, '', {}} end
local active, head, summary = handed_out(stream)
local last = last_delivered(stream, summary)

local function parts(entry)
  local ms, n = string.match(entry, '^(%d+)-?(%d*)$')
  return tonumber(ms), tonumber(n) or 0
end

local function precedes(one, other)
  local ms, n = parts(one)
  local other_ms, other_n = parts(other)
  return ms < other_ms or (ms == other_ms and n < other_n)
end

-- What is looked at: entry and job id, or false for one that is not of this state.
local seen = {}
local function note(entry, is_wanted)
  seen[#seen + 1] = {entry[1], is_wanted and entry[2][1] == 'j' and entry[2][2] or false}
end

-- Those that were handed out, of one piece of the stream.
local function note_delivered(high, low)
  local entries = redis.call('XREVRANGE', stream, high, low, 'COUNT', looks - #seen)
  if #entries == 0 then return end
  local owners = {}
  local bottom, top = entries[#entries][1], entries[1][1]
  for _, row in ipairs(redis.call('XPENDING', stream, 'w', bottom, top, looks + 100)) do owners[row[1]] = row[2] end
  for _, entry in ipairs(entries) do
    local owner = owners[entry[1]]
    note(entry, owner and (owner == 'head') == (state == 'w'))
  end
end

local function note_pending(low, high, ...)
  for _, row in ipairs(redis.call('XPENDING', stream, 'w', low, high, looks, ...)) do
    local entry = redis.call('XRANGE', stream, row[1], row[1])[1]
    note(entry or {row[1], {}}, state == 'w' or row[2] ~= 'head')
  end
end

local behind = least ~= '-' and precedes(last, least) and least or '(' .. last  -- where what was never handed out begins
local in_front = place == '' or not precedes(last, place)  -- whether the place is among what was handed out
local bounded = most ~= '+' and precedes(most, last)  -- whether what is asked for ends there
if down then
  if state == 'w' and (place == '' or precedes(last, place)) and not bounded then
    local from = place == '' and most or '(' .. place
    for _, entry in ipairs(redis.call('XREVRANGE', stream, from, behind, 'COUNT', looks)) do note(entry, true) end
  end
  if #seen < looks and (state == 'w' and head or active) > 0 then
    note_delivered(place ~= '' and in_front and '(' .. place or bounded and most or last, least)
  end
else
  local from = place == '' and least or '(' .. place
  if state == 'a' then
    if active > 0 then note_pending(from, most) end
  else
    if head > 0 and in_front then note_pending(from, most, 'head') end
    if #seen < looks then
      if not in_front then behind = '(' .. place end
      for _, entry in ipairs(redis.call('XRANGE', stream, behind, most, 'COUNT', looks - #seen)) do note(entry, true) end
    end
  end
end

local looked, bytes, found = 0, 0, {}
while looked < #seen and #found < finds and bytes < budget do
  local entry, id = unpack(seen[looked + 1])
  local fields, more = false, 0
  if id then fields, more = look(prefix .. id) end
  bytes = bytes + more
  if bytes > budget and fields and not (may_burst and looked == 0) then break end
  looked = looked + 1
  place = entry
  if fields then found[#found + 1] = {id, entry, fields} end
end
return {looked, (looked < #seen or #seen >= looks) and 1 or 0, place, found}
