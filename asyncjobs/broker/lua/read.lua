#!lua flags=no-writes
-- read: one job as it stands.
--
-- KEYS[1] job        hash
-- KEYS[2] delayed    zset
-- ARGV[1] id
--
-- Returns {due ms or '', field, value, …}; only {''} where there is no such job
local reply = redis.call('HGETALL', KEYS[1])
table.insert(reply, 1, redis.call('ZSCORE', KEYS[2], ARGV[1]) or '')
return reply
