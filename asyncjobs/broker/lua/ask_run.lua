#!lua flags=allow-oom
-- ask_run: ask for one run of a task now, look what became of that, or give it up.
--
-- KEYS[1] asked      string 'scheduled ms', and once it was taken ' verdict process' behind it
-- ARGV[1] orders     channel
-- ARGV[2] message    what to say there
-- ARGV[3] kind       'ask', also again; or 'end'
--
-- Returns the verdict of whoever took it, or ''; after 'end' nobody takes it any more
-- @include clock
local known = redis.call('GET', KEYS[1])
local verdict = known and string.match(known, '^%d+ (%S+)')
if verdict then return verdict end
if ARGV[3] == 'end' then
  redis.call('DEL', KEYS[1])
  return ''
end
if not known then redis.call('SET', KEYS[1], string.format('%.0f', now), 'PX', 60000) end
redis.call('PUBLISH', ARGV[1], ARGV[2])
return ''
