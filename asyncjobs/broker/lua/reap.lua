#!lua flags=allow-oom
-- reap: delete the keys of an idle group, if no job of it is waiting, active or delayed.
--
-- KEYS[1] stream · KEYS[2] delayed · KEYS[3] bucket · KEYS[4] settings
--
-- Returns {1, -1} reaped · {0, ms until the group's next job is due, or 0}
-- One script checks and deletes, because a check from outside would lose jobs that are added in between.
-- The senders stay until they expire, because an add whose job has run and is gone may still be sent again.
-- @include clock
local nearest = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
if nearest[2] then return {0, math.max(0, tonumber(nearest[2]) - now)} end
if redis.call('XLEN', KEYS[1]) > 0 then return {0, 0} end
local last = redis.call('LINDEX', KEYS[3], -1)
-- A bucket whose tokens are not all back stays until it expires, because the limit outlives the group.
if last and tonumber(string.match(last, '^%d+')) <= now_us then redis.call('DEL', KEYS[3]) end
-- Settings outlive the group. A hold that is over does not.
local held = redis.call('HGET', KEYS[4], 'h')
if held and tonumber(held) <= now then redis.call('HDEL', KEYS[4], 'h') end
redis.call('DEL', KEYS[1])
return {1, -1}
