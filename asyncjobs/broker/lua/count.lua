#!lua flags=no-writes
-- count: how many jobs of one queue are in each state.
--
-- KEYS[1] stream · KEYS[2] delayed · KEYS[3] completed · KEYS[4] failed
--
-- Returns {waiting, active, delayed, completed, failed}
-- @include handed_out
local length, active = redis.call('XLEN', KEYS[1]), 0
if length > 0 then active = handed_out(KEYS[1]) end
return {
  length - active, active, redis.call('ZCARD', KEYS[2]), redis.call('ZCARD', KEYS[3]), redis.call('ZCARD', KEYS[4]),
}
