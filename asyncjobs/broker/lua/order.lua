#!lua flags=allow-oom
-- order: ask something of a process or of a task, or take that back, and tell the processes.
--
-- KEYS[1] known      zset or hash: what is not in it is not known; tasks or processes
-- KEYS[2] orders     hash process or task → JSON
-- ARGV[1] kind       of KEYS[1], 'zset' or 'hash'
-- ARGV[2] name       of the process or the task
-- ARGV[3] order      JSON; '' to take it back
-- ARGV[4] orders     channel
-- ARGV[5] message    what to say there
--
-- Returns 1 done, or done before · 0 not known
local known = ARGV[1] == 'zset' and redis.call('ZSCORE', KEYS[1], ARGV[2])
known = known or ARGV[1] == 'hash' and redis.call('HGET', KEYS[1], ARGV[2])
if not known then return 0 end
if ARGV[3] == '' then
  redis.call('HDEL', KEYS[2], ARGV[2])
else
  redis.call('HSETNX', KEYS[2], ARGV[2], ARGV[3])
end
redis.call('PUBLISH', ARGV[4], ARGV[5])
return 1
