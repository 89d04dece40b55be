#!lua flags=allow-oom
-- audit: lengthen the trail of what operators do, also while memory is short: they may be about to make room.
--
-- KEYS[1] trail      stream
-- ARGV[1] most       entries that are kept, give or take the last node
-- ARGV[2] once       unique: what is sent again adds nothing
-- ARGV[3…] field · value
--
-- Returns the id of the entry
for _, entry in ipairs(redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 20)) do
  if entry[2][1] == 'once' and entry[2][2] == ARGV[2] then return entry[1] end
end
return redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'once', ARGV[2], unpack(ARGV, 3))
