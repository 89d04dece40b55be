-- foreign: whether a reply is an error that an operator has made by overwriting a key; other errors may pass.
local function is_foreign(reply)
  return reply.err and string.find(reply.err, 'WRONGTYPE', 1, true)
end
