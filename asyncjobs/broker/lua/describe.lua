#!lua flags=no-writes
-- describe: what is known of some processes.
--
-- KEYS[1] processes  zset process → ms of its last beat
-- KEYS[2] due        zset process → ms when its shortest lease ends
-- KEYS[3] leases     hash process → its leases
-- KEYS[4] about      hash process → JSON; 'process names' → JSON
-- KEYS[5] draining   hash process → JSON
-- ARGV[…] processes
--
-- Returns {now ms, {ms of its last beat, ms when its lease ends or '', leases, about, names, draining}, …}; {} for one that
-- is not on the list (any more). '' where nothing is known: an earlier release says nothing of itself.
-- @include clock
local reply = {string.format('%.0f', now)}
for i = 1, #ARGV do
  local name = ARGV[i]
  local at = redis.call('ZSCORE', KEYS[1], name)
  if at then
    local about = redis.call('HMGET', KEYS[4], name, name .. ' names')
    reply[i + 1] = {
      at, redis.call('ZSCORE', KEYS[2], name) or '', redis.call('HGET', KEYS[3], name) or '', about[1] or '',
      about[2] or '', redis.call('HGET', KEYS[5], name) or '',
    }
  else
    reply[i + 1] = {}
  end
end
return reply
