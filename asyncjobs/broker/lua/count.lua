#!lua flags=no-writes
-- count: how many jobs of one queue are in each state.
--
-- KEYS[1] stream · KEYS[2] delayed · KEYS[3] completed · KEYS[4] failed
--
-- Returns {waiting, active, delayed, completed, failed}
local length, active = redis.call('XLEN', KEYS[1]), 0
if length > 0 then
  local pending = redis.pcall('XPENDING', KEYS[1], 'w')
  if not pending.err then
    active = pending[1]
    for _, row in ipairs(pending[4] or {}) do
      if row[1] == 'head' then active = active - tonumber(row[2]) end
    end
  end
end
return {
  length - active, active, redis.call('ZCARD', KEYS[2]), redis.call('ZCARD', KEYS[3]), redis.call('ZCARD', KEYS[4]),
}
