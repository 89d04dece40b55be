-- look: the record of a job that is listed, where it is one that is wanted. Reads state, whole, filter. Needs `foreign`.
-- filter: '' or msgpack {d: of the data, e: of the last error}, each a list of alternatives: texts that all have to be there.
-- Cost of a search: 1.5 µs a job, most of it one HGET. So what decides is read first, and alone.
local call, pcall, find = redis.call, redis.pcall, string.find
local wanted = filter ~= '' and cmsgpack.unpack(filter) or nil
local finals = {c = true, f = true, k = true}
local tries = '1'  -- of the job that was looked at last: the next one has probably as many

local function has(text, alternatives)
  for i = 1, #alternatives do
    local texts, found = alternatives[i], true
    for j = 1, #texts do
      if not find(text, texts[j], 1, true) then
        found = false
        break
      end
    end
    if found then return true end
  end
  return false
end

-- Whether a record says that its job stands where it is listed. Where a job waits, runs or is delayed its place decides.
local function stands(x)
  if finals[state] then return x == state end
  return not finals[x]
end

-- A reply about a record that somebody may have overwritten: nil then.
local function checked(reply)
  if type(reply) ~= 'table' or not reply.err then return reply end
  if not is_foreign(reply) then error(reply) end
  return nil
end

-- The error of the last try.
local function last_error(key)
  local job = checked(pcall('HMGET', key, 'a', 'e' .. tries))
  if not job or not job[1] then return nil end
  if job[1] == tries then return job[2] end
  tries = job[1]
  return call('HGET', key, 'e' .. tries)
end

-- Returns whether a record has what is searched for, and how many bytes were looked at.
local function matches(key)
  local size = 0
  if wanted.d then
    local text = checked(pcall('HGET', key, 'd'))
    if not text then return false, 0 end
    size = #text
    if not has(text, wanted.d) then return false, size end
  end
  if wanted.e then
    local text = last_error(key)
    if not text then return false, size end
    size = size + #text
    if not has(text, wanted.e) then return false, size end
  end
  return true, size
end

-- Who a job is, and when.
local function slim(key)
  local names = {'x', 't', 'a', 's', 'u', 'F'}
  local job, fields = checked(pcall('HMGET', key, unpack(names))), {}
  if not job or not stands(job[1]) or call('HEXISTS', key, 'd') == 0 then return false, 0 end
  for i = 1, #names do
    if job[i] then
      fields[#fields + 1] = names[i]
      fields[#fields + 1] = job[i]
    end
  end
  return fields, 100
end

-- Returns the fields, false where the job is not wanted, and how many bytes were looked at. What is found by a search is
-- read as a whole, since the caller looks at it again.
local function look(key)
  local size = 0
  if wanted then
    local found
    found, size = matches(key)
    if not found then return false, size end
  elseif not whole then
    return slim(key)
  end
  local fields, x, there = checked(pcall('HGETALL', key)), nil, false
  if not fields then return false, size end
  size = 0
  for i = 1, #fields, 2 do
    if fields[i] == 'd' then there = true elseif fields[i] == 'x' then x = fields[i + 1] end
    size = size + #fields[i + 1]
  end
  if not there or not stands(x) then return false, size end
  return fields, size
end
