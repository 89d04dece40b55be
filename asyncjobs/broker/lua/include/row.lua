-- row: a job as a process gets it: id · entry · data · attempts made · stalled count · added ms · options.
-- `job` holds the fields 'd', 'a', 's', 't', 'o' of the job's record.
local function add_row(rows, id, entry, job, stalled)
  local n = #rows
  rows[n + 1], rows[n + 2], rows[n + 3], rows[n + 4] = id, entry, job[1], job[2] or '0'
  rows[n + 5], rows[n + 6], rows[n + 7] = stalled or job[3] or '0', job[4] or '0', job[5] or ''
end
