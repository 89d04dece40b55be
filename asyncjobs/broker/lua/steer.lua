#!lua flags=allow-oom
-- steer: change a queue's settings at run time, and tell the processes that serve the queue.
--
-- KEYS[1] settings   hash, see `work`; m most waiting
-- ARGV[1] news       channel
-- ARGV[2] message    for that channel
-- ARGV[3] orders     channel, told as well: a queue whose slots are all in use has no turn in which it would see it
-- ARGV[4] order      for that channel
-- ARGV[5…] field · value, '' removes the setting
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
