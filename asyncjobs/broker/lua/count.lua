#!lua flags=no-writes
-- count: count the jobs of one queue in each state.
--
-- KEYS[1] stream · KEYS[2] delayed · KEYS[3] completed · KEYS[4] failed · KEYS[5] cancelled
--
-- Returns {waiting, active, delayed, completed, failed}, and cancelled where some are
-- @include handed_out
local length, active = redis.call('XLEN', KEYS[1]), 0
if length > 0 then active = handed_out(KEYS[1]) end
local cancelled = redis.call('ZCARD', KEYS[5])
return {
  length - active, active, redis.call('ZCARD', KEYS[2]), redis.call('ZCARD', KEYS[3]), redis.call('ZCARD', KEYS[4]),
  cancelled > 0 and cancelled or nil,
}
