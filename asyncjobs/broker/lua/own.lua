#!lua flags=allow-oom
-- own: what is pending for a process on one queue, in order, as `work` would have returned it.
--
-- KEYS[1] stream
-- ARGV[1] jobs       prefix of the job hashes
-- ARGV[2] consumer   the asking process
-- ARGV[3] after      entry to start behind, or '-'
-- ARGV[4] bytes      of payloads after which no further job is returned
--
-- Returns {next, rows}
--   next: the entry to go on behind, '' after the last; 500 are looked at, and those without a job are left out
--   rows: id · entry · data · attempts made · stalled count · added ms · options · token
-- Reads only, by XPENDING and XRANGE: re-reading history by XREADGROUP would raise delivery counts.
-- @include foreign
-- @include row
local rows = {}
local budget, size, last = tonumber(ARGV[4]), 0, ''
local after = ARGV[3] == '-' and '-' or '(' .. ARGV[3]
local pending = redis.pcall('XPENDING', KEYS[1], 'w', after, '+', 500, ARGV[2])
if pending.err then return {'', rows} end
for _, row in ipairs(pending) do
  if size >= budget then return {last, rows} end
  last = row[1]
  local entry = redis.call('XRANGE', KEYS[1], row[1], row[1])[1]
  if entry then
    local id = entry[2][2]
    local job = redis.pcall('HMGET', ARGV[1] .. id, 'd', 'a', 's', 't', 'o', 'r', 'x')
    if job.err and not is_foreign(job) then return job end
    if job[1] and job[7] == 'a' then
      add_row(rows, id, entry[1], job)
      rows[#rows + 1] = job[6] or ''
      size = size + #job[1]
    end
  end
end
return {#pending == 500 and pending[500][1] or '', rows}
