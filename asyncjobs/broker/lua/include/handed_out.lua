-- handed_out: how many jobs of a stream processes hold, how many wait at its head, and its summary. There is no summary
-- if no job was ever taken, or if an operator deleted the stream's group.
local function handed_out(stream)
  local summary, head = redis.pcall('XPENDING', stream, 'w'), 0
  if summary.err then return 0, 0, nil end
  for _, row in ipairs(summary[4] or {}) do
    if row[1] == 'head' then head = tonumber(row[2]) end
  end
  return summary[1] - head, head, summary
end
