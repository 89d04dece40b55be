#!lua flags=allow-oom
-- unlist: finished jobs of groups leave the listing of their name, unless they were listed anew since.
--
-- KEYS[1] listing    zset 'length of group id:group id, job id' → finished ms
-- ARGV[1…] per job: member · the score that it had
--
-- Returns how many were taken off. A job that is retried may finish anew within the same ms, so no clock could tell.
local gone = 0
for i = 1, #ARGV, 2 do
  if redis.call('ZSCORE', KEYS[1], ARGV[i]) == ARGV[i + 1] then gone = gone + redis.call('ZREM', KEYS[1], ARGV[i]) end
end
return gone
