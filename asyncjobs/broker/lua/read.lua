#!lua flags=no-writes
-- read: one job's record, and when the job is due.
--
-- KEYS[1] job        hash
-- KEYS[2] delayed    zset
-- ARGV[1] id
--
-- Returns {due ms or '', field, value, …}; only {''} if there is no such job, or its record was overwritten
-- @include foreign
local reply = redis.pcall('HGETALL', KEYS[1])
if reply.err then
  if not is_foreign(reply) then return reply end
  reply = {}
end
table.insert(reply, 1, redis.call('ZSCORE', KEYS[2], ARGV[1]) or '')
return reply
