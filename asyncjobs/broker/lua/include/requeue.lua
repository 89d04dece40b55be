-- requeue: a job waits behind all others of its queue from now on. Needs `stream`; sets length, requeued.
local length, requeued = redis.call('XLEN', stream), 0
local function requeue(key, id)
  if length == 0 then
    redis.pcall('XGROUP', 'CREATE', stream, 'w', '0', 'MKSTREAM')
    length = -1
  end
  redis.call('HSET', key, 'i', redis.call('XADD', stream, '*', 'j', id))
  requeued = requeued + 1
end
