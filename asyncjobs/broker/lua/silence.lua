#!lua flags=no-writes
-- silence: how long some processes have been silent.
--
-- KEYS[1] processes  zset process → ms of its last beat
-- ARGV[…] processes
--
-- Returns ms for each; -1 for a process that never beat, or was buried
-- @include clock
local reply = {}
for i = 1, #ARGV do
  local at = redis.call('ZSCORE', KEYS[1], ARGV[i])
  reply[i] = at and math.max(0, now - tonumber(at)) or -1
end
return reply
