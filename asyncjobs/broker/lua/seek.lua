#!lua flags=no-writes
-- seek: which of several records are there.
--
-- KEYS[1] any        key of the slot that all of them lie in; outside of a Cluster everything does
-- ARGV[1] id         of the job
-- ARGV[2…] the tags of the queues that may have it
--
-- Returns the places in the list, from 0, of those that do
local found, id = {}, ':j:' .. ARGV[1]
for i = 2, #ARGV do
  if redis.pcall('HEXISTS', ARGV[i] .. id, 'd') == 1 then found[#found + 1] = i - 2 end
end
return found
