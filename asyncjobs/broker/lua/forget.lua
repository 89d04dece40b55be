#!lua flags=allow-oom
-- forget: delete the records of finished jobs of groups. A job that lives again under the same id is left alone.
--
-- KEYS[1] any        key of the slot in which all these records lie; outside of a Cluster all keys lie in one slot
-- ARGV[1] before     ms: only jobs that had finished by then
-- ARGV[2] listed     'c', 'f' or 'k': the jobs leave the listing of completed, failed or cancelled jobs
-- ARGV[3…] per group: jobs prefix · completed · failed · cancelled · number of ids · the ids
--
-- Returns one character a job: '1' record deleted · '2' it had no record · '0' not finished (any more), it stays ·
-- '3' it has finished otherwise than this listing says, and stays: its settlement was refused after it was listed
local answers, before, listed, i = {}, tonumber(ARGV[1]), ARGV[2], 3
while i <= #ARGV do
  local prefix, last = ARGV[i], i + 4 + tonumber(ARGV[i + 4])
  local zsets = {c = ARGV[i + 1], f = ARGV[i + 2], k = ARGV[i + 3]}
  for j = i + 5, last do
    local key = prefix .. ARGV[j]
    local job = redis.call('HMGET', key, 'x', 'F')
    if zsets[job[1]] and job[1] ~= listed then
      answers[#answers + 1] = '3'
    elseif zsets[job[1]] and tonumber(job[2]) <= before then
      redis.call('UNLINK', key)
      redis.call('ZREM', zsets[job[1]], ARGV[j])
      answers[#answers + 1] = '1'
    else
      answers[#answers + 1] = redis.call('EXISTS', key) == 1 and '0' or '2'
    end
  end
  i = last + 1
end
return table.concat(answers)
