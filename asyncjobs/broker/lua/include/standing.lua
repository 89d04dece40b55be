-- standing: in which state a job is, as one letter: 'w'aiting, 'd'elayed, 'a'ctive, 'c'ompleted, 'f'ailed, 'k' cancelled; '-'
-- where there is no such job, or somebody else has overwritten its record. Needs `foreign`.
-- Returns the letter, the record's 'd', 'x' and 'O', and the error of a server that would not say.
local function standing(key, id, delayed)
  local job = redis.pcall('HMGET', key, 'd', 'x', 'O')
  if job.err then return '-', {}, not is_foreign(job) and job or nil end
  if not job[1] then return '-', job end
  local mark = job[2]
  if mark == 'a' or mark == 'c' or mark == 'f' or mark == 'k' then return mark, job end
  return redis.call('ZSCORE', delayed, id) and 'd' or 'w', job
end
