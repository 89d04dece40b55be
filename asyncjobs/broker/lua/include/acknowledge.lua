-- acknowledge, of `work`: entries of settled jobs leave the stream. Reads acked; sets length, active, head, summary.
local function parts(entry)
  local ms, n = string.match(entry, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(n)
end

local function after(entry, other)
  local ms, n = parts(entry)
  local other_ms, other_n = parts(other)
  return ms > other_ms or (ms == other_ms and n > other_n)
end

-- Deleting an entry by its id costs 3 µs, because the server walks the node to find it; trimming walks once for all.
-- Entries are handed out in order, and stay pending until they are acknowledged. So all entries before the first
-- pending one are done; without a pending one, all up to the last acknowledged one. These are trimmed. Later ones are
-- deleted one by one.
-- If an operator deleted the stream or its group, no entry is pending. A new stream may use an entry's id again.
if #acked > 0 then
  call('XACK', stream, 'w', unpack(acked))
  active, head, summary = handed_out(stream)
  if not summary and had then length = length - call('XDEL', stream, unpack(acked)) end
end
if #acked > 0 and summary then
  local bound = summary[2]
  if not bound then
    local last = acked[1]
    for _, entry in ipairs(acked) do
      if after(entry, last) then last = entry end
    end
    local ms, n = string.match(last, '^(%d+)-(%d+)$')
    bound = ms .. '-' .. string.format('%.0f', n + 1)
  end
  local gone = call('XTRIM', stream, 'MINID', '=', bound)
  length = length - gone
  if gone < #acked then
    local left = {}
    for _, entry in ipairs(acked) do
      if after(entry, bound) then left[#left + 1] = entry end
    end
    if #left > 0 then length = length - call('XDEL', stream, unpack(left)) end
  end
end
