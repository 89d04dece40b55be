-- delivered: up to which entry a stream was handed out; what is left of that is pending. Needs the stream's summary.
local function last_delivered(stream, summary)
  for _, group in ipairs(summary and redis.call('XINFO', 'GROUPS', stream) or {}) do
    local known = {}
    for i = 1, #group, 2 do known[group[i]] = group[i + 1] end
    if known['name'] == 'w' then return known['last-delivered-id'] end
  end
  return '0-0'
end
