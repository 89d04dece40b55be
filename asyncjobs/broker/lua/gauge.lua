#!lua flags=no-writes
-- gauge: what waits and runs on one queue, and since when the oldest waits.
--
-- KEYS[1] stream · KEYS[2] delayed
--
-- Returns {waiting, those that are overdue included; active; ms since the oldest was due, -1 where none waits}
-- An entry's id says when it was added, and its field `u` since when it was due, where that was long before.
-- @include clock
-- @include handed_out
local length, active, head, summary = redis.call('XLEN', KEYS[1]), 0, 0, nil
local oldest
local function since(entry)
  if not entry then return end
  local due = tonumber(entry[2][4] or string.match(entry[1], '^%d+'))
  if due and (not oldest or due < oldest) then oldest = due end
end
if length > 0 then active, head, summary = handed_out(KEYS[1]) end
if length > active then
  if head > 0 then
    local row = redis.call('XPENDING', KEYS[1], 'w', '-', '+', 1, 'head')[1]
    since(row and redis.call('XRANGE', KEYS[1], row[1], row[1])[1])
  end
  -- What was handed out and is not pending has gone: the first that was not is behind the last that is.
  since(redis.call('XRANGE', KEYS[1], summary and summary[3] and '(' .. summary[3] or '-', '+', 'COUNT', 1)[1])
end
local overdue = redis.call('ZCOUNT', KEYS[2], '-inf', now)
if overdue > 0 then
  local due = tonumber(redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2])
  if not oldest or due < oldest then oldest = due end
end
return {length - active + overdue, active, oldest and math.max(0, now - oldest) or -1}
