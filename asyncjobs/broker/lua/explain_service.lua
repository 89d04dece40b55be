#!lua flags=no-writes
-- explain_service: which processes run a job name, and how full the limits are that it shares by their names.
--
-- KEYS[1] processes  zset process → ms of its last beat
-- KEYS[2] due        zset process → ms when its shortest lease ends
-- KEYS[3] about      hash process → JSON; 'process names' → JSON
-- KEYS[4] draining   hash process → JSON
-- KEYS[5] names      hash job name → JSON
-- ARGV[1] name       of the job
-- ARGV[2] lease      ms
-- ARGV[3] gates      in front of the name of a limiter
-- ARGV[4] known      '1': the limiters are those that follow; '' those that the store has of the name
-- ARGV[5…] names of limiters
--
-- Returns {now µs, what the store has of the name or '', processes that run it, processes that do not say what they run,
-- {draining process that would run it, …}, {slots used, slots, ms since the beat, of some that run it, …},
-- {limiter, the state of its gate as `gate_state` has it, …}}
-- At most 1000 processes are looked at, those that were heard last; of those that run it 100, the rest is counted as one
-- that does not say.
-- @include clock
-- @include gate_state
local reply = {string.format('%.0f', now_us), redis.call('HGET', KEYS[5], ARGV[1]) or '', 0, 0, {}, {}, {}}
local wanted = '"' .. ARGV[1] .. '"'
for _, process in ipairs(redis.call('ZRANGE', KEYS[1], -1000, -1)) do
  local due = tonumber(redis.call('ZSCORE', KEYS[2], process) or redis.call('ZSCORE', KEYS[1], process) + 30000)
  if reply[3] >= 100 then
    reply[4] = reply[4] + 1
    break
  end
  if due > now then
    local names = redis.call('HGET', KEYS[3], process .. ' names')
    local at = names and string.find(names, wanted, 1, true)
    if not names then
      reply[4] = reply[4] + 1
    elseif at and at < (string.find(names, '"tasks":[', 1, true) or math.huge) then
      if redis.call('HGET', KEYS[4], process) then
        if #reply[5] < 5 then reply[5][#reply[5] + 1] = process end
      else
        reply[3] = reply[3] + 1
        local about = redis.call('HGET', KEYS[3], process)
        if about then
          local some = reply[6]
          some[#some + 1] = tonumber(string.match(about, '"used":(%d+)') or 0)
          some[#some + 1] = tonumber(string.match(about, '"slots":(%d+)') or 0)
          some[#some + 1] = now - tonumber(redis.call('ZSCORE', KEYS[1], process))
        end
      end
    end
  end
end
local limiters = {unpack(ARGV, 5)}
if ARGV[4] == '' and reply[2] ~= '' then
  local readable, known = pcall(cjson.decode, reply[2])
  local named = readable and type(known) == 'table' and known['named']
  for limiter in pairs(type(named) == 'table' and named or {}) do limiters[#limiters + 1] = tostring(limiter) end
end
for _, limiter in ipairs(limiters) do
  local gates = reply[7]
  gates[#gates + 1] = limiter
  gates[#gates + 1] = gate_state(ARGV[3] .. limiter, tonumber(ARGV[2]))
end
return reply
