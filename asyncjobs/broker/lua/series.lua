#!lua flags=no-writes
-- series: the newest blocks of the history of one name, see `chronicle`.
--
-- KEYS[1] seen       of the same name, which says where they lie
-- ARGV[1] tier       prefix of its blocks
-- ARGV[2] length     ms of a block
-- ARGV[3] count      of blocks
--
-- Returns {now ms, number of the first, one or '' each}
-- @include clock
local last = math.floor(now / tonumber(ARGV[2]))
local first = last - tonumber(ARGV[3]) + 1
local reply = {now, first}
for number = first, last do
  reply[#reply + 1] = redis.call('GET', ARGV[1] .. string.format('%.0f', number)) or ''
end
return reply
