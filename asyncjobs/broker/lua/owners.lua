#!lua flags=no-writes
-- owners: the processes that hold jobs of one queue.
--
-- KEYS[1] stream
--
-- Returns the names of all consumers with something pending, 'head' left out
local names = {}
local pending = redis.pcall('XPENDING', KEYS[1], 'w')
if pending.err then return names end
for _, row in ipairs(pending[4] or {}) do
  if row[1] ~= 'head' then names[#names + 1] = row[1] end
end
return names
