#!lua flags=allow-oom
-- owners: the processes that hold jobs of one queue. The names of processes that have long held none are removed.
--
-- KEYS[1] stream
-- ARGV[1] idle       ms without use after which a name without a job is removed
--
-- Returns the names of all consumers with pending jobs, 'head' left out
-- A killed process leaves its name behind, and the name would stay for ever on a stream that is never empty. A process
-- that lives after all writes its name anew when it takes a job.
local names = {}
local consumers = redis.pcall('XINFO', 'CONSUMERS', KEYS[1], 'w')
if consumers.err then return names end
local over = 0
for _, flat in ipairs(consumers) do
  local one = {}
  for i = 1, #flat, 2 do one[flat[i]] = flat[i + 1] end
  if one.name ~= 'head' then
    if one.pending > 0 then
      names[#names + 1] = one.name
    elseif one.idle >= tonumber(ARGV[1]) and over < 1000 then
      over = over + 1
      redis.call('XGROUP', 'DELCONSUMER', KEYS[1], 'w', one.name)
    end
  end
end
return names
