#!lua flags=no-writes
-- inspect: where the jobs of one queue stand at one instant, to check that each job stands in one place.
--
-- KEYS[1] stream · KEYS[2] delayed · KEYS[3] completed · KEYS[4] failed · KEYS[5] cancelled
-- ARGV[1] jobs       prefix of the job hashes
-- ARGV[2] most       entries of each kind that are read
--
-- Returns {waiting: id …; pending: owner, id …; delayed: id …; records: id, state, token …; finished: id …; counts, as
-- in `count`: waiting, active, delayed}
local most = tonumber(ARGV[2])
local waiting, pending, records, seen, owned = {}, {}, {}, {}, {}
local function record(id)
  if seen[id] then return end
  seen[id] = true
  local job = redis.call('HMGET', ARGV[1] .. id, 'x', 'r')
  local n = #records
  records[n + 1], records[n + 2], records[n + 3] = id, job[1] or '', job[2] or ''
end
local rows = redis.pcall('XPENDING', KEYS[1], 'w', '-', '+', most)
if not rows.err then
  for _, row in ipairs(rows) do owned[row[1]] = row[2] end
end
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', most)) do
  local id, owner = entry[2][2], owned[entry[1]]
  if owner then
    pending[#pending + 1] = owner
    pending[#pending + 1] = id
    owned[entry[1]] = nil
  else
    waiting[#waiting + 1] = id
  end
  record(id)
end
local delayed = redis.call('ZRANGE', KEYS[2], 0, most - 1)
for _, id in ipairs(delayed) do record(id) end
local finished = redis.call('ZRANGE', KEYS[3], 0, most - 1)
for i = 4, 5 do
  for _, id in ipairs(redis.call('ZRANGE', KEYS[i], 0, most - 1)) do finished[#finished + 1] = id end
end
-- @include handed_out
local length, active = redis.call('XLEN', KEYS[1]), (handed_out(KEYS[1]))
return {waiting, pending, delayed, records, finished, {length - active, active, redis.call('ZCARD', KEYS[2])}}
