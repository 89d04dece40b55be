#!lua flags=no-writes
-- peek: the records of jobs that a listing names.
--
-- KEYS[1] any        key of the slot that all of them lie in; outside of a Cluster everything does
-- ARGV[1] state      'c' 'f' 'k'
-- ARGV[2] whole      '1': the whole records; '': who they are and when
-- ARGV[3] filter     see `look`
-- ARGV[4] bytes      that the records may have together      ARGV[5] one  '1': the first of them may have more
-- ARGV[6…] the keys of the records
--
-- Returns {looked at, one {field, value …} a record: empty where there is none, or not one that is wanted}
-- @include foreign
local state, whole, filter, budget, may_burst = ARGV[1], ARGV[2] == '1', ARGV[3], tonumber(ARGV[4]), ARGV[5] == '1'
-- @include look
local looked, bytes, found = 0, 0, {}
while looked < #ARGV - 5 and bytes < budget do
  local fields, more = look(ARGV[looked + 6])
  bytes = bytes + more
  if bytes > budget and fields and not (may_burst and looked == 0) then break end
  looked = looked + 1
  found[looked] = fields or {}
end
return {looked, found}
