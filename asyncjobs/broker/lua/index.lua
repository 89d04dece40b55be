#!lua flags=allow-oom
-- index: list finishing jobs of groups under their job name, before they finish, and return the jobs that are too many.
--
-- KEYS[1] groups     zset group id → ms of its last sign of life
-- KEYS[2] completed  zset 'length of group id:group id, job id' → finished ms
-- KEYS[3] failed     the same
-- KEYS[4] cancelled  the same
-- ARGV[1] ccount     completed jobs kept, -1 for all        ARGV[2] cage  ms they are kept, -1 for ever
-- ARGV[3] fcount     the same for failed ones               ARGV[4] fage
-- ARGV[5] kcount     the same for cancelled ones            ARGV[6] kage
-- ARGV[7…] per job: group · 'c', 'f', 'k' or '' (alive, nothing to list) · member
--
-- Returns {completed members over the limits, failed ones, now ms, cancelled ones}. They stay listed until their records
-- are gone.
-- With jobs to list, one member of each kind is enough to show that there are any; without, up to 1000 are returned.
-- @include clock
local alive, listed, places = {}, {c = {}, f = {}, k = {}}, {c = KEYS[2], f = KEYS[3], k = KEYS[4]}
for i = 7, #ARGV, 3 do
  alive[#alive + 1] = now
  alive[#alive + 1] = ARGV[i]
  local list = listed[ARGV[i + 1]]
  if list then
    list[#list + 1] = now
    list[#list + 1] = ARGV[i + 2]
  end
end
for op, list in pairs(listed) do  -- a listing of a foreign type refuses all: `work` looks at one of them
  if #list > 0 then redis.call('ZCARD', places[op]) end
end
local function add(key, ...) redis.call('ZADD', key, ...) end
for i = 1, #alive, 1000 do add(KEYS[1], 'XX', unpack(alive, i, math.min(i + 999, #alive))) end
for op, list in pairs(listed) do
  for i = 1, #list, 1000 do add(places[op], unpack(list, i, math.min(i + 999, #list))) end
end
local most = #ARGV > 6 and 1 or 1000
local function over(zset, count, age)
  local members, seen = {}, {}
  -- The other listing may be of a foreign type. This one's jobs are listed all the same; the timer reports the other.
  if most == 1 and type(redis.pcall('ZCARD', zset)) ~= 'number' then return members end
  local function note(list)
    for _, member in ipairs(list) do
      if not seen[member] then
        seen[member] = true
        members[#members + 1] = member
      end
    end
  end
  if count >= 0 then
    local n = redis.call('ZCARD', zset) - count
    if n > 0 then note(redis.call('ZRANGE', zset, 0, math.min(n, most) - 1)) end
  end
  if age >= 0 then note(redis.call('ZRANGEBYSCORE', zset, '-inf', now - age, 'LIMIT', 0, most)) end
  return members
end
return {
  over(KEYS[2], tonumber(ARGV[1]), tonumber(ARGV[2])), over(KEYS[3], tonumber(ARGV[3]), tonumber(ARGV[4])), now,
  over(KEYS[4], tonumber(ARGV[5]), tonumber(ARGV[6])),
}
