#!lua flags=allow-oom
-- sweep: give back the jobs of a dead process on one queue. A job whose handler had begun gets one more stall.
--
-- KEYS[1] stream
-- ARGV[1] jobs       prefix of the job hashes
-- ARGV[2] news       channel told that work came back
-- ARGV[3] group      the group id as given, or ''
-- ARGV[4] dead       the dead process
-- ARGV[5] consumer   the sweeping process
-- ARGV[6] token      of this sweep, the fence of the jobs that it returns as doomed
-- ARGV[7] most       stalls allowed
--
-- Returns {given-back ids, left (1: call again), rows of doomed jobs as in `work`}, and marked ones as there, if any
-- The sweeper claims a job with too many stalls, and fails it in the ordinary way (`work`, op 'f'). It also claims a job
-- whose cancel was asked for, and cancels it (op 'k').
-- @include foreign
-- @include row
-- @include news
local stream, prefix = KEYS[1], ARGV[1]
local back, doomed, marked, size, seen = {}, {}, nil, 0, 0
local pending = redis.pcall('XPENDING', stream, 'w', '-', '+', 500, ARGV[4])
if pending.err then return {back, 0, doomed} end
for _, row in ipairs(pending) do
  if size >= 2097152 then break end  -- bytes of doomed payloads, since a reply has to fit through a narrow link
  seen = seen + 1
  local entry = redis.call('XRANGE', stream, row[1], row[1])[1]
  local id = entry and entry[2][2]
  local job = id and redis.pcall('HMGET', prefix .. id, 'd', 'a', 's', 't', 'o', 'z', 'r', 'k', 'x')
  if job and job.err and not is_foreign(job) then return job end
  if not job or not job[1] then
    redis.call('XACK', stream, 'w', row[1])
    redis.call('XDEL', stream, row[1])
  elseif job[8] and job[9] == 'a' then
    redis.call('HSET', prefix .. id, 'r', ARGV[6])
    redis.call('XCLAIM', stream, 'w', ARGV[5], 0, row[1], 'JUSTID')
    marked, job[1] = marked or {}, ''
    add_row(marked, id, row[1], job)
    marked[#marked + 1] = job[8]
  else
    local before = tonumber(job[3]) or 0
    if before < 0 or before > 1e6 or before % 1 ~= 0 then before = 0 end  -- another program has written the field
    -- This take has marked the job, or an earlier release, which marked all jobs alike.
    local stalled = before + ((job[6] == '1' or (job[6] and job[6] == job[7])) and 0 or 1)
    if stalled > tonumber(ARGV[7]) then
      redis.call('HSET', prefix .. id, 's', stalled, 'r', ARGV[6], 'x', 'a')
      redis.call('XCLAIM', stream, 'w', ARGV[5], 0, row[1], 'JUSTID')
      add_row(doomed, id, row[1], job, tostring(stalled))
      size = size + #job[1]
    else
      redis.call('HSET', prefix .. id, 's', stalled, 'r', '', 'x', 'w')
      redis.call('XCLAIM', stream, 'w', 'head', 0, row[1], 'JUSTID')
      back[#back + 1] = id
    end
  end
end
-- Only an empty consumer may go, because DELCONSUMER destroys the entries that are pending for it.
local left = #pending == 500 or seen < #pending
if not left then redis.call('XGROUP', 'DELCONSUMER', stream, 'w', ARGV[4]) end
if redis.call('XLEN', stream) == 0 then redis.call('DEL', stream) end
if #back > 0 then tell_news(ARGV[2], ARGV[3]) end
return {back, left and 1 or 0, doomed, marked}
