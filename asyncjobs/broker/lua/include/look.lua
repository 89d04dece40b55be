-- look: the record of a job that is listed, where it is one that is wanted. Reads state, whole, filter. Needs `foreign`.
-- filter: '' or msgpack {d: of the data, e: of the last error}, each a list of alternatives: texts that all have to be there.
local wanted = filter ~= '' and cmsgpack.unpack(filter) or nil
local finals = {c = true, f = true, k = true}

local function has(text, alternatives)
  for _, texts in ipairs(alternatives) do
    local found = true
    for _, one in ipairs(texts) do
      if not string.find(text, one, 1, true) then
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

-- Returns the fields, false where the job is not wanted, and how many bytes were looked at.
local function look(key)
  local size, known = 0, nil
  if wanted then
    known = redis.pcall('HMGET', key, 'd', 'x', 'a')
    if known.err then
      if is_foreign(known) then return false, 0 end
      error(known)
    end
    if not known[1] or not stands(known[2]) then return false, 0 end
    size = #known[1]
    if wanted.d and not has(known[1], wanted.d) then return false, size end
    if wanted.e then
      local text = known[3] and redis.call('HGET', key, 'e' .. known[3])
      if not text then return false, size end
      size = size + #text
      if not has(text, wanted.e) then return false, size end
    end
  end
  if not whole and not wanted then
    local job = redis.pcall('HMGET', key, 'x', 't', 'a', 's', 'u', 'F')
    if job.err then
      if is_foreign(job) then return false, 0 end
      error(job)
    end
    if not stands(job[1]) or redis.call('HEXISTS', key, 'd') == 0 then return false, 0 end
    local fields = {}
    for i, name in ipairs({'x', 't', 'a', 's', 'u', 'F'}) do
      if job[i] then
        fields[#fields + 1] = name
        fields[#fields + 1] = job[i]
      end
    end
    return fields, 100
  end
  local fields = redis.pcall('HGETALL', key)
  if fields.err then
    if is_foreign(fields) then return false, 0 end
    error(fields)
  end
  local x, there = nil, false
  for i = 1, #fields, 2 do
    if fields[i] == 'd' then there = true elseif fields[i] == 'x' then x = fields[i + 1] end
    size = size + #fields[i + 1]
  end
  if not there or not stands(x) then return false, size end
  return fields, size
end
