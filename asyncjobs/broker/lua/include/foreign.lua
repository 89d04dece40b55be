-- foreign: true if a reply is an error because a key was overwritten with another type. Other errors may pass.
local function is_foreign(reply)
  return reply.err and string.find(reply.err, 'WRONGTYPE', 1, true)
end
