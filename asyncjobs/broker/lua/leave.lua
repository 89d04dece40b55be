#!lua flags=allow-oom
-- leave: a stopping process takes its name off one queue, unless something is still pending for it.
--
-- KEYS[1] stream
-- ARGV[1] consumer   the leaving process
--
-- Returns 1 nothing of it is left · 0 it still owns jobs
local pending = redis.pcall('XPENDING', KEYS[1], 'w', '-', '+', 1, ARGV[1])
if pending.err then return 1 end
if #pending > 0 then return 0 end
redis.call('XGROUP', 'DELCONSUMER', KEYS[1], 'w', ARGV[1])
return 1
