-- withdraw: take the entry of a job that waits out of its stream, which goes with its last entry.
-- `entry` is where the record says that it stands, or where it was found. Returns whether it stood there; else nothing
-- was changed.
local function withdraw(stream, id, entry)
  local found = entry and entry ~= '' and redis.pcall('XRANGE', stream, entry, entry, 'COUNT', 1)
  if not found or found.err or not found[1] or found[1][2][2] ~= id then return false end
  redis.call('XACK', stream, 'w', found[1][1])
  redis.call('XDEL', stream, found[1][1])
  if redis.call('XLEN', stream) == 0 then redis.call('DEL', stream) end
  return true
end
