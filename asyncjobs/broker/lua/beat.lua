#!lua flags=allow-oom
-- beat: a process's sign of life, and what it hears of the others.
--
-- KEYS[1] processes  zset process → ms of its last beat
-- KEYS[2] epoch      string: drawn when it is missing, so that it changes only with the loss of the data
-- ARGV[1] process
-- ARGV[2] joining    '1' when it has just taken this name
-- ARGV[3] draw       an epoch never used before
--
-- Returns {1 alive or 0 declared dead (not written), epoch, name, ms since its last beat, …}
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local reply = {1, redis.call('GET', KEYS[2])}
if not reply[2] then
  redis.call('SET', KEYS[2], ARGV[3])
  reply[2] = ARGV[3]
end
if ARGV[2] == '1' or redis.call('ZSCORE', KEYS[1], ARGV[1]) then
  redis.call('ZADD', KEYS[1], now, ARGV[1])
else
  reply[1] = 0
end
local rows = redis.call('ZRANGE', KEYS[1], 0, 999, 'WITHSCORES')
for i = 1, #rows, 2 do
  if rows[i] ~= ARGV[1] then
    reply[#reply + 1] = rows[i]
    reply[#reply + 1] = math.max(0, now - tonumber(rows[i + 1]))
  end
end
return reply
