#!lua flags=allow-oom
-- raze: jobs of one queue go, each with its place, whatever else its record holds; a piece at a time.
--
-- KEYS[1] stream     stream {j: job id}
-- KEYS[2] delayed    zset id → due ms
-- KEYS[3] completed  zset id → finished ms
-- KEYS[4] failed     zset id → finished ms
-- KEYS[5] cancelled  zset id → finished ms
-- ARGV[1] jobs       prefix of the job hashes
-- ARGV[2] done       channel told of a job that somebody waits for
-- ARGV[3] force      '1': those that run go as well
-- ARGV[4] most       jobs a piece
-- ARGV[5] until      ms: what came to its place later stays; '' now
-- ARGV[6] after      entry that was looked at last; ''
-- ARGV[7] delayed    how many delayed ones go, which do not tell since when they are there; '' all
--
-- Returns {until, after, delayed: for the next piece; 1 if there may be more; how many jobs ran and stay}
-- So a job that is added meanwhile goes as a whole or stays as a whole.
-- @include clock
local prefix, most, latest = ARGV[1], tonumber(ARGV[4]), ARGV[5] ~= '' and ARGV[5] or string.format('%.0f', now)
local after, more, ran = ARGV[6], 0, 0

local function forget(id)
  local key = prefix .. id
  local watched = redis.pcall('HGET', key, 'w')
  redis.call('UNLINK', key)
  if type(watched) == 'string' then redis.call('PUBLISH', ARGV[2], cmsgpack.pack({key, 'x', ''})) end
end

local from = after == '' and '-' or '(' .. after
local entries = redis.call('XRANGE', KEYS[1], from, latest, 'COUNT', most)
for _, entry in ipairs(entries) do
  local id = entry[2][2]
  after = entry[1]
  if ARGV[3] ~= '1' and redis.pcall('HGET', prefix .. id, 'x') == 'a' then
    ran = ran + 1
  else
    redis.pcall('XACK', KEYS[1], 'w', entry[1])
    redis.call('XDEL', KEYS[1], entry[1])
    forget(id)
  end
end
if #entries == most then more = 1 end
if #entries > 0 and redis.call('XLEN', KEYS[1]) == 0 then redis.call('DEL', KEYS[1]) end

local left = ARGV[7] ~= '' and tonumber(ARGV[7]) or redis.call('ZCARD', KEYS[2])
local function take(zset, ids)
  if #ids == 0 then return end
  for _, id in ipairs(ids) do forget(id) end
  redis.call('ZREM', zset, unpack(ids))
  if #ids == most then more = 1 end
end
if left > 0 then
  take(KEYS[2], redis.call('ZRANGE', KEYS[2], 0, math.min(left, most) - 1))
  left = math.max(0, left - most)
end
for i = 3, 5 do
  take(KEYS[i], redis.call('ZRANGEBYSCORE', KEYS[i], '-inf', latest, 'LIMIT', 0, most))
end
return {latest, after, left, more, ran}
