#!lua flags=allow-oom
-- retain: keep the tries that a process still owns after it was declared dead and has taken a new name.
--
-- KEYS[1] stream
-- ARGV[1] jobs       prefix of the job hashes
-- ARGV[2] consumer   the new name
-- ARGV[3…] per running try: id · entry · token
--
-- Returns one character a try: '1' still owned, now under the new name · '0' lost
-- @include foreign
local answers = {}
for i = 3, #ARGV, 3 do
  local job = redis.pcall('HMGET', ARGV[1] .. ARGV[i], 'r', 'x')
  if job.err and not is_foreign(job) then return job end
  if job[1] == ARGV[i + 2] and job[2] == 'a' then
    redis.call('XCLAIM', KEYS[1], 'w', ARGV[2], 0, ARGV[i + 1], 'JUSTID')
    answers[#answers + 1] = '1'
  else
    answers[#answers + 1] = '0'
  end
end
return table.concat(answers)
