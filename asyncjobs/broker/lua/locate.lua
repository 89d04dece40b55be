#!lua flags=no-writes
-- locate: the entries of jobs that wait and whose records do not say where; records of earlier releases do not.
--
-- KEYS[1] stream     stream {j: job id}
-- ARGV[1] from       entry to look from, '-' for the first
-- ARGV[2] most       entries that are looked at
-- ARGV[3…] ids
--
-- Returns {the entry to go on behind, or '' after the last; id, entry, id, entry, …}
local wanted, found = {}, {}
for i = 3, #ARGV do wanted[ARGV[i]] = true end
local entries = redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', ARGV[2])
for _, entry in ipairs(entries) do
  local id = entry[2][2]
  if wanted[id] then
    found[#found + 1] = id
    found[#found + 1] = entry[1]
  end
end
return {#entries == tonumber(ARGV[2]) and entries[#entries][1] or '', found}
