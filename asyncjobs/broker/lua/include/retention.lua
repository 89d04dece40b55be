-- retention, of `work`: delete finished jobs beyond the retention. Reads finished, by_default, overrides.
-- Jobs of groups are counted over all groups of their name, see `index`. Keeping none removes only the finishing job.
for op, list in pairs(finished) do
  if by_default[op] then
    local at = op == 'c' and 15 or 17
    trim(zsets[op], prefix, tonumber(ARGV[at]), tonumber(ARGV[at + 1]), #list + 20)
  end
end
for rule in pairs(group == '' and overrides or {}) do
  local op, count, age = string.match(rule, '^(.)(-?%d+):(-?%d+)$')
  trim(zsets[op], prefix, tonumber(count), tonumber(age), 100)  -- the first hundred; the caller trims the rest
end
