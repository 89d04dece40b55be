#!lua flags=allow-oom
-- work: settle the finished jobs of one queue, then take as many jobs as there are free slots and tokens.
--
-- KEYS[1] stream     stream {j: job id} · waiting = not pending, or pending for 'head'; active = pending for a process
-- KEYS[2] delayed    zset id → due ms
-- KEYS[3] bucket     list 'µs of return, tokens, tokens ever taken before'; expires when the last token is back
-- KEYS[4] completed  zset id → finished ms
-- KEYS[5] failed     zset id → finished ms
-- KEYS[6] settings   hash, made at run time: w windows · c concurrency · g weight · p paused · h held until ms
-- KEYS[7] listing    zset that lists finished jobs of the name, see `index`; the stream if they are not listed
-- ARGV[1] jobs       prefix of the job hashes
-- ARGV[2] news       channel told when other processes should look here
-- ARGV[3] done       channel told when a watched job has finished
-- ARGV[4] group      the group id as given, or ''
-- ARGV[5] consumer   the taking process
-- ARGV[6] token      of this take, unique; the fence of each job that it returns
-- ARGV[7] free       slots to fill
-- ARGV[8] slots      most active jobs over all processes, 0 for no such bound
-- ARGV[9] windows    'max:µs max:µs …' of the limiter, '' for none
-- ARGV[10] margin    µs that a start may lag behind its token
-- ARGV[11] ahead     with slots of 1: jobs beyond the first that the process may hold, to run one after the other
-- ARGV[12] tell      '1': right behind an add, which has published no news; other processes hear of the jobs left
-- ARGV[13] bytes     of payloads after which no further job is taken
-- ARGV[14] listed    a member of the listing, without which no job is settled; '' for none
-- ARGV[15] ccount    completed jobs kept, -1 for all        ARGV[16] cage  ms they are kept, -1 for ever
-- ARGV[17] fcount    the same for failed ones               ARGV[18] fage
-- ARGV[19] mark      '1': jobs that did not stall before are marked as well, so each is charged only once it has begun
-- ARGV[20…] per settled job: op · id · entry · token · body · number · keep
--   'c' completed: body result      number -      keep '' by the defaults, '0' none, 'count:age' these
--   'f' failed     body error       number -      keep the same
--   'r' again      body error or '' number delay ms  keep '1' counts an attempt, '0' does not
--   'b' back to the head, uncounted               number ms for which the queue is held, 0 for no hold
--   'h' again, from the head        body error    number ms for which the queue is held; counts an attempt
--   'k' cancelled  body as in `k` of the record   number '1' counts an attempt, '0' does not   keep as for 'f'
--
-- Returns {statuses, wait ms or -1, rows, windows, concurrency, weight, marked}; the values behind rows only for a queue
-- with settings, or if marked jobs were met
--   statuses: one character a settled job: '1' done · '2' was done already · '0' stale: another try owns it · '3' gone ·
--   '4' its cancel was asked for: it must not run again, and has to be settled as 'k'
--   wait: until the next job is due or the next token is back
--   rows: per job taken: id · entry · data · attempts made · stalled count · added ms · options
--   marked: the same of taken jobs that are not to run, without data, and the mark of each: they are to be settled as 'k'
-- Fence: a settlement counts only while the job is active under its token. New state first, XACK and XDEL last.
-- Lua does not roll back. So reads that can fail (a foreign type, a job whose slot is on the move) come before writes,
-- and a job that fails while it is taken goes back to the head. If an operator deletes a stream under its running jobs,
-- no call fails: outcomes count, and jobs that have to run again are added anew.
-- Suspects: a job that stalled before is marked by its token in `z` until its handler begins, so that it gets no stall
-- while it waits for that. The mark of an earlier take does not count.
-- Token bucket: a token returns `duration` after it was taken, so no window of `duration` sees more than `max`.
-- Cost: 15 µs a job, half of it Lua. A number that is passed to a command is printed with 17 digits, which takes longer
-- than many commands. So numbers for all jobs are made strings once. Globals are looked up by name, locals not.
local call, pcall, ARGV = redis.call, redis.pcall, ARGV
local stream, delayed, bucket = KEYS[1], KEYS[2], KEYS[3]
local prefix, news, group, consumer, token = ARGV[1], ARGV[2], ARGV[4], ARGV[5], ARGV[6]
local free, slots, mark = tonumber(ARGV[7]), tonumber(ARGV[8]), ARGV[19] == '1'
local set = redis.call('HMGET', KEYS[6], 'w', 'c', 'g', 'p', 'h')
local windows, held = set[1] or ARGV[9], tonumber(set[5])
if set[2] and slots > 0 then slots = tonumber(set[2]) or slots end
-- @include clock
local stamp = string.format('%.0f', now)

-- `index` went before this call, but if the server refused it, the rest of the pipeline was run all the same.
if ARGV[14] ~= '' and not redis.call('ZSCORE', KEYS[7], ARGV[14]) then
  return redis.error_reply('TRYAGAIN the jobs to settle are not listed under their name')
end

-- @include foreign
-- @include handed_out
-- @include row
-- @include bucket
-- @include trim
-- @include news
local length = redis.call('XLEN', stream)
local had, active, head, summary = length > 0, 0, 0, nil
local statuses, acked, settled, released = {}, {}, 0, false
local finished, zsets = {c = {}, f = {}}, {c = KEYS[4], f = KEYS[5]}
local by_default, overrides = {}, {}  -- finished jobs, kept by the name's rules, or by the rules that one add gave
local first, soonest  -- when the next delayed job was due, and when the job is due that was delayed now, if any
local rows, marked, waiting, wait = {}, nil, 0, -1

-- @include settle
-- @include retention
-- @include acknowledge
-- @include promote
-- @include take

local tell = ARGV[12] == '1' and waiting * 7 > #rows
if tell or (waiting > 0 and #rows == 0 and (released or (settled > 0 and free == 0))) then
  tell_news(news, group)
end
if soonest and (not first or soonest < tonumber(first)) then
  tell_news(news, group, soonest - now)
end
-- An empty stream still costs 4 to 5 kB.
if had and length <= 0 then redis.call('DEL', stream) end
if set[1] or set[2] or set[3] or marked then
  return {table.concat(statuses), wait, rows, set[1] or '', set[2] or '', set[3] or '', marked}
end
return {table.concat(statuses), wait, rows}
