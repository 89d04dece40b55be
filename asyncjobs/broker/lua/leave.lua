#!lua flags=allow-oom
-- leave: take a stopping process's name off one queue, unless a job is still pending for the process.
--
-- KEYS[1] stream
-- ARGV[1] consumer   the leaving process
--
-- Returns 1 the name is off · 0 the process still owns jobs
local pending = redis.pcall('XPENDING', KEYS[1], 'w', '-', '+', 1, ARGV[1])
if pending.err then return 1 end
if #pending > 0 then return 0 end
redis.call('XGROUP', 'DELCONSUMER', KEYS[1], 'w', ARGV[1])
return 1
