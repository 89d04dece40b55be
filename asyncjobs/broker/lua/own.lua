#!lua flags=allow-oom
-- own: the jobs that are pending for a process on one queue, in order, in the form that `work` returns.
--
-- KEYS[1] stream
-- ARGV[1] jobs       prefix of the job hashes
-- ARGV[2] consumer   the asking process
-- ARGV[3] after      entry to start behind, or '-'
-- ARGV[4] bytes      of payloads after which no further job is returned
--
-- Returns {next, rows}, and marked if there are any
--   next: the entry to go on behind, '' after the last; 500 entries are read, and those without a job are left out
--   rows: id · entry · data · attempts made · stalled count · added ms · options · token
--   marked: the same for jobs whose cancel was asked for, without data, and the mark of each
-- The script only reads, by XPENDING and XRANGE, because re-reading history by XREADGROUP would raise delivery counts.
-- @include foreign
-- @include row
local rows, marked = {}, nil
local budget, size, last = tonumber(ARGV[4]), 0, ''
local after = ARGV[3] == '-' and '-' or '(' .. ARGV[3]
local pending = redis.pcall('XPENDING', KEYS[1], 'w', after, '+', 500, ARGV[2])
if pending.err then return {'', rows} end
for _, row in ipairs(pending) do
  if size >= budget then return {last, rows, marked} end
  last = row[1]
  local entry = redis.call('XRANGE', KEYS[1], row[1], row[1])[1]
  if entry then
    local id = entry[2][2]
    local job = redis.pcall('HMGET', ARGV[1] .. id, 'd', 'a', 's', 't', 'o', 'r', 'x', 'k')
    if job.err and not is_foreign(job) then return job end
    if job[1] and job[7] == 'a' then
      local into = rows
      if job[8] then
        marked = marked or {}
        into, job[1] = marked, ''
      end
      add_row(into, id, entry[1], job)
      into[#into + 1] = job[6] or ''
      into[#into + 1] = job[8] or nil  -- what is missing in a record is false
      size = size + #job[1]
    end
  end
end
return {#pending == 500 and pending[500][1] or '', rows, marked}
