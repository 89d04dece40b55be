#!lua flags=allow-oom
-- cancel: cancel jobs of one queue: those that wait or are delayed at once, those that run by a mark that is told.
--
-- KEYS[1] stream · KEYS[2] delayed
-- KEYS[3] cancelled  zset id → finished ms
-- ARGV[1] jobs       prefix of the job hashes
-- ARGV[2] cancels    channel told of jobs that run
-- ARGV[3] done       channel told when a watched job has finished
-- ARGV[4] name       of the job
-- ARGV[5] group      the group id as given, or ''
-- ARGV[6] mark       who asks for it, why and when, JSON
-- ARGV[7] kcount     cancelled jobs kept, -1 for all; '' where others see to that, by a list over all groups of the name
-- ARGV[8] kage       ms they are kept, -1 for ever
-- ARGV[9…] per job: id · entry where it was found, '' not looked for, '-' found nowhere · keep as for 'k' in `work`
--
-- Returns per job: answer · detail
--   answer: 'k' cancelled now · 'x' cancelled before · 'f' finished · 'g' gone · 'a' it runs, and its process is told;
--   the detail is what was told, to be told again to a process that has missed it · '?' its entry is not where its
--   record says: find it and call again
-- The first to ask is who is named. A job that is marked and runs may still finish first; it is never run again.
-- Lua does not roll back: what can be of a foreign type is looked at before anything is written.
-- @include clock
-- @include foreign
-- @include trim
-- @include withdraw
local stream, delayed, cancelled = KEYS[1], KEYS[2], KEYS[3]
local prefix, name, group, mark = ARGV[1], ARGV[4], ARGV[5], ARGV[6]
local stamp, reply, by_default, rules = string.format('%.0f', now), {}, 0, {}
redis.call('XLEN', stream)
redis.call('ZCARD', delayed)
redis.call('ZCARD', cancelled)

-- It waits, and its entry, if it has one, leaves the stream.
local function cancel(key, id, job, keep)
  if keep == '0' and not job[5] then
    redis.call('UNLINK', key)
  else
    redis.call('HSET', key, 'x', 'k', 'F', stamp, 'k', mark)
    if keep == '0' then redis.call('PEXPIRE', key, 60000) end
  end
  if keep ~= '0' then
    redis.call('ZADD', cancelled, stamp, id)
    if keep == '' then by_default = by_default + 1 else rules[keep] = true end
  end
  if job[5] then redis.call('PUBLISH', ARGV[3], cmsgpack.pack({key, 'k', mark})) end
end

for i = 9, #ARGV, 3 do
  local id, entry, keep = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local key, answer, detail = prefix .. id, 'g', ''
  local job = redis.pcall('HMGET', key, 'd', 'x', 'k', 'i', 'w', 'r')
  if job.err and not is_foreign(job) then return job end
  local state = job[2]
  if job.err or not job[1] then
    answer = 'g'
  elseif state == 'k' then
    answer = job[3] == mark and 'k' or 'x'  -- this very call was sent before
  elseif state == 'c' or state == 'f' then
    answer = 'f'
  elseif state == 'a' then
    answer = 'a'
    if not job[3] then redis.call('HSET', key, 'k', mark) end
    detail = cmsgpack.pack({name, group, id, job[6] or '', job[3] or mark})
    redis.call('PUBLISH', ARGV[2], detail)
  elseif withdraw(stream, id, job[4]) or withdraw(stream, id, entry) or redis.call('ZREM', delayed, id) == 1
    or entry == '-' then
    answer = 'k'
    cancel(key, id, job, keep)
  else
    answer = '?'
  end
  local n = #reply
  reply[n + 1], reply[n + 2] = answer, detail
end
if ARGV[7] == '' then return reply end
if by_default > 0 then trim(cancelled, prefix, tonumber(ARGV[7]), tonumber(ARGV[8]), by_default + 20) end
for keep in pairs(rules) do
  local count, age = string.match(keep, '^(-?%d+):(-?%d+)$')
  trim(cancelled, prefix, tonumber(count), tonumber(age), 100)  -- a beginning: the caller sees to the rest
end
return reply
