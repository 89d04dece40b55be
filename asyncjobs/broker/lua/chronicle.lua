#!lua flags=allow-oom
-- chronicle: add what a process has counted of one name to the history of that name, once.
--
-- KEYS[1] seen       hash process → 'number of its last figures here, ms until which those may be sent again'
-- ARGV[1] history    prefix of the blocks; each holds ten slots and goes by itself
-- ARGV[2] process
-- ARGV[3] number     of these figures, rising per process: those that are sent again are recognised by it
-- ARGV[4] age        ms since they were counted
-- ARGV[5] figures    msgpack {counters, gauges, wait, run, groups}
-- ARGV[6] resent     ms in which they may be sent again
-- ARGV[7] heaviest   groups of a minute that are kept     ARGV[8] bytes of them at most
-- ARGV[9…] per tier: minutes of a slot · ms that a block is kept · bytes of a slot at most: its histograms get coarser
--          before it grows beyond
--
-- Returns 1 added · 0 they were added before
-- A slot is {counters, {oldest waiting ms, backlog, running} or {}, wait, run}. A histogram is {scale, samples, bucket,
-- count, …}: 2^scale buckets of two an octave are one, so that two of them can be added whatever their scales.
-- @include clock
local history, process, number = ARGV[1], ARGV[2], tonumber(ARGV[3])
local last = redis.call('HGET', KEYS[1], process)
if last and (tonumber(string.match(last, '^%d+') or '') or -1) >= number then return 0 end

local figures = cmsgpack.unpack(ARGV[5])
local at = now - math.max(0, math.min(tonumber(ARGV[4]), 10800000))

-- A block as it stands; one that somebody else has made something else of is begun anew.
local function block_at(key)
  local text = redis.call('GET', key)
  local well, block = pcall(cmsgpack.unpack, text or '')
  if not (text and well and type(block) == 'table' and #block == 10) then block = {} end
  for place = 1, 10 do
    if type(block[place]) ~= 'table' then block[place] = {} end
  end
  return block
end

local function coarser(histogram, scale)
  local by, counts = 2 ^ (scale - histogram.scale), {}
  if by <= 1 then return end
  for bucket, count in pairs(histogram.counts) do
    local one = math.floor(bucket / by)
    counts[one] = (counts[one] or 0) + count
  end
  histogram.counts, histogram.scale = counts, scale
end

local function histogram_of(flat)
  local found = {scale = flat[1] or 0, samples = flat[2] or 0, counts = {}}
  for i = 3, #flat, 2 do found.counts[flat[i]] = flat[i + 1] end
  return found
end

local function added(flat, more)
  local sum, other = histogram_of(flat or {}), histogram_of(more)
  local scale = math.max(sum.scale, other.scale)
  coarser(sum, scale)
  coarser(other, scale)
  sum.samples = sum.samples + other.samples
  for bucket, count in pairs(other.counts) do sum.counts[bucket] = (sum.counts[bucket] or 0) + count end
  return sum
end

local function flattened(histogram)
  local flat, n = {histogram.scale, histogram.samples}, 2
  for bucket, count in pairs(histogram.counts) do
    flat[n + 1], flat[n + 2], n = bucket, count, n + 2
  end
  return flat, n
end

local function add_to(slot, bytes)
  local counters, gauges = slot[1] or {}, slot[2] or {}
  for i, count in ipairs(figures[1]) do counters[i] = (counters[i] or 0) + count end
  for i, value in ipairs(figures[2]) do gauges[i] = math.max(gauges[i] or 0, value) end
  local wait, run = added(slot[3], figures[3]), added(slot[4], figures[4])
  while true do
    local waits, w = flattened(wait)
    local runs, r = flattened(run)
    local new = {counters, gauges, waits, runs}
    if #cmsgpack.pack(new) <= bytes or math.max(wait.scale, run.scale) >= 6 then return new end
    local larger = (w > r or run.scale > wait.scale) and wait or run
    coarser(larger, larger.scale + 1)
  end
end

for i = 9, #ARGV, 3 do
  local slot = math.floor(at / (tonumber(ARGV[i]) * 60000))
  local key, place = history .. ARGV[i] .. ':' .. string.format('%.0f', math.floor(slot / 10)), slot % 10 + 1
  local block = block_at(key)
  block[place] = add_to(block[place], tonumber(ARGV[i + 2]))
  redis.call('SET', key, cmsgpack.pack(block), 'PX', ARGV[i + 1])
end

-- Groups: {id, starts, busy ms, …}, the heaviest first.
local function add_groups(flat)
  local found, order = {}, {}
  for _, some in ipairs({flat, figures[5]}) do
    for i = 1, #some, 3 do
      local one = found[some[i]]
      if not one then
        one = {some[i], 0, 0}
        found[some[i]], order[#order + 1] = one, one
      end
      one[2], one[3] = one[2] + some[i + 1], one[3] + some[i + 2]
    end
  end
  table.sort(order, function(a, b)
    if a[2] + a[3] ~= b[2] + b[3] then return a[2] + a[3] > b[2] + b[3] end
    return a[1] < b[1]
  end)
  local kept, size = {}, 0
  for i = 1, math.min(#order, tonumber(ARGV[7])) do
    size = size + #order[i][1] + 9
    if size > tonumber(ARGV[8]) then break end
    for _, value in ipairs(order[i]) do kept[#kept + 1] = value end
  end
  return kept
end

if #figures[5] > 0 then
  local minute = math.floor(at / 60000)
  local key = history .. 'g:' .. string.format('%.0f', math.floor(minute / 10))
  local block = block_at(key)
  block[minute % 10 + 1] = add_groups(block[minute % 10 + 1])
  redis.call('SET', key, cmsgpack.pack(block), 'PX', 3600000)
end

local resent = tonumber(ARGV[6])
redis.call('HSET', KEYS[1], process, string.format('%.0f %.0f', number, now + resent))
redis.call('PEXPIRE', KEYS[1], resent)
-- A busy name would keep every process that ever counted it.
if not last and redis.call('HLEN', KEYS[1]) > 32 then
  local marks = redis.call('HGETALL', KEYS[1])
  for i = 1, #marks, 2 do
    local till = tonumber(string.match(marks[i + 1], ' (%d+)$') or '')
    if not till or till < now then redis.call('HDEL', KEYS[1], marks[i]) end
  end
end
return 1
