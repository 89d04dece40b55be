#!lua flags=allow-oom
-- unlist: finished jobs of groups leave the listing of their name, unless they were listed anew since.
--
-- KEYS[1] listing    zset 'length of group id:group id, job id' → finished ms
-- ARGV[1] before     ms: only what was listed by then
-- ARGV[2…] members
--
-- Returns how many were taken off
local gone = 0
for i = 2, #ARGV do
  local at = redis.call('ZSCORE', KEYS[1], ARGV[i])
  if at and tonumber(at) <= tonumber(ARGV[1]) then gone = gone + redis.call('ZREM', KEYS[1], ARGV[i]) end
end
return gone
