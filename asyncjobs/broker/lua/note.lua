#!lua flags=allow-oom
-- note: write a running job's progress, a line of its log, or that its handler begins, if the caller owns the job.
--
-- KEYS[1] job        hash
-- ARGV[1] token      the fence
-- ARGV[2] kind       'progress', 'log' or 'begin'
-- ARGV[3] value      JSON, or the line
-- ARGV[4] most       log lines kept
-- ARGV[5] number     of the line, unique, so that a repeated line is written once
--
-- Returns 1 written · 0 the caller does not own the job any more
local job = redis.call('HMGET', KEYS[1], 'r', 'x')
if job[1] ~= ARGV[1] or job[2] ~= 'a' then return 0 end
if ARGV[2] == 'progress' then
  redis.call('HSET', KEYS[1], 'p', ARGV[3])
elseif ARGV[2] == 'begin' then
  redis.call('HDEL', KEYS[1], 'z')
elseif redis.call('HGET', KEYS[1], 'li') ~= ARGV[5] then
  redis.call('HSET', KEYS[1], 'li', ARGV[5])
  local n = redis.pcall('HINCRBY', KEYS[1], 'ln', 1)
  if type(n) ~= 'number' or n < 1 or n > 1e14 then  -- another program has overwritten the field
    redis.call('HSET', KEYS[1], 'ln', 1)
    n = 1
  end
  redis.call('HSET', KEYS[1], 'l' .. n, ARGV[3])
  if n > tonumber(ARGV[4]) then redis.call('HDEL', KEYS[1], 'l' .. (n - tonumber(ARGV[4]))) end
end
return 1
