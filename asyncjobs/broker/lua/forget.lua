#!lua flags=allow-oom
-- forget: delete the records of finished jobs of one queue; a job that lives again under its id is left alone.
--
-- KEYS[1] completed · KEYS[2] failed
-- ARGV[1] jobs       prefix of the job hashes
-- ARGV[2] before     ms: only what had finished by then
-- ARGV[3…] the job ids
--
-- Returns one character a job: '1' its record is gone · '0' it is not finished (any more), so it stays
local answers = {}
for i = 3, #ARGV do
  local key = ARGV[1] .. ARGV[i]
  local job = redis.call('HMGET', key, 'x', 'F')
  answers[#answers + 1] = '1'
  if (job[1] == 'c' or job[1] == 'f') and tonumber(job[2]) <= tonumber(ARGV[2]) then
    redis.call('UNLINK', key)
    redis.call('ZREM', job[1] == 'c' and KEYS[1] or KEYS[2], ARGV[i])
  elseif redis.call('EXISTS', key) == 1 then
    answers[#answers] = '0'
  end
end
return table.concat(answers)
