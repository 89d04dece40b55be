#!lua flags=allow-oom
-- remove: jobs of one queue that do not run go, with all that they own.
--
-- KEYS[1] stream     stream {j: job id}
-- KEYS[2] delayed    zset id → due ms
-- KEYS[3] completed  zset id → finished ms
-- KEYS[4] failed     zset id → finished ms
-- KEYS[5] cancelled  zset id → finished ms
-- ARGV[1] jobs       prefix of the job hashes
-- ARGV[2] done       channel told of a job that somebody waits for
-- ARGV[3…] per job: id · entry where it was found to wait, or ''
--
-- Returns {now ms, one character a job: '1' it is gone · 'l' it waits, and its record does not say where: find its entry ·
-- else its state, see `standing`}
local stream, delayed, prefix = KEYS[1], KEYS[2], ARGV[1]
-- @include clock
-- @include foreign
-- @include standing
-- @include withdraw
local sets, answers = {d = KEYS[2], c = KEYS[3], f = KEYS[4], k = KEYS[5]}, {}
redis.call('XLEN', stream)
for _, zset in pairs(sets) do redis.call('ZCARD', zset) end  -- one of a foreign type fails before anything is written
for i = 3, #ARGV, 2 do
  local id = ARGV[i]
  local key = prefix .. id
  local state, _, broken = standing(key, id, delayed)
  if broken then return broken end
  if state == 'w' then
    local entry = redis.call('HGET', key, 'i')
    if not withdraw(stream, id, entry) and not withdraw(stream, id, ARGV[i + 1]) then state = 'l' end
  end
  if state == 'w' or sets[state] then
    local watched = redis.call('HGET', key, 'w')
    if sets[state] then redis.call('ZREM', sets[state], id) end
    redis.call('UNLINK', key)
    if watched then redis.call('PUBLISH', ARGV[2], cmsgpack.pack({key, 'x', ''})) end
    state = '1'
  end
  answers[#answers + 1] = state
end
return {now, table.concat(answers)}
