#!lua
-- promote: delayed jobs of one queue wait from now on, behind all others.
--
-- KEYS[1] stream     stream {j: job id}
-- KEYS[2] delayed    zset id → due ms
-- ARGV[1] jobs       prefix of the job hashes
-- ARGV[2] news       channel told that there is work
-- ARGV[3] group      the group id as given, or ''
-- ARGV[4] act        unique: a job that this act has reached already is left alone
-- ARGV[5] entry      what the record tells of the act: a JSON object without its '{' and its instant
-- ARGV[6…] ids
--
-- Returns {now ms, one character a job: '1' waits · '2' did so before by this act · else its state, see `standing`}
local stream, delayed, prefix, act = KEYS[1], KEYS[2], ARGV[1], ARGV[4]
-- @include clock
local stamp = string.format('%.0f', now)
-- @include foreign
-- @include standing
-- @include requeue
-- @include news
-- @include acted
return reach(6, {d = delayed}, function() end)
