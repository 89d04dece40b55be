#!lua flags=allow-oom
-- trim: apply a job name's retention to one queue that may be idle.
--
-- KEYS[1] completed · KEYS[2] failed · KEYS[3] cancelled
-- ARGV[1] jobs       prefix of the job hashes
-- ARGV[2] ccount     completed jobs kept, -1 for all        ARGV[3] cage  ms they are kept, -1 for ever
-- ARGV[4] fcount     the same for failed ones               ARGV[5] fage
-- ARGV[6] kcount     the same for cancelled ones            ARGV[7] kage
--
-- Returns how many records were deleted, at most 3000, so the caller calls again until it is 0
-- @include clock
-- @include trim
local gone = 0
for i = 1, 3 do gone = gone + trim(KEYS[i], ARGV[1], tonumber(ARGV[2 * i]), tonumber(ARGV[2 * i + 1]), 1000) end
return gone
