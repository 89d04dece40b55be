#!lua flags=allow-oom
-- steer: change what is set of a queue at run time, and tell the processes that serve it.
--
-- KEYS[1] settings   hash, see `work`; m most waiting
-- ARGV[1] news       channel
-- ARGV[2] message    what to say there
-- ARGV[3] orders     channel, told as well: a queue whose slots are all in use has no turn in which it would see it
-- ARGV[4] order      what to say there
-- ARGV[5…] field · value, '' for none
--
-- Returns 1
for i = 5, #ARGV, 2 do
  if ARGV[i + 1] == '' then
    redis.call('HDEL', KEYS[1], ARGV[i])
  else
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  end
end
redis.call('PUBLISH', ARGV[1], ARGV[2])
redis.call('PUBLISH', ARGV[3], ARGV[4])
return 1
