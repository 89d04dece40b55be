#!lua flags=allow-oom
-- watch: ask for news of a job's end, or learn that the job has finished.
--
-- KEYS[1] job        hash
--
-- Returns {state, body}: 'c' and its result · 'f' and its last error · 'k' and its mark · '' not finished, will be published · 'x' no such job
local job = redis.call('HMGET', KEYS[1], 'd', 'x', 'v', 'a')
if not job[1] and not job[2] then return {'x', ''} end
if job[2] == 'c' then return {'c', job[3] or ''} end
if job[2] == 'f' then return {'f', redis.call('HGET', KEYS[1], 'e' .. (job[4] or '0')) or ''} end
if job[2] == 'k' then return {'k', redis.call('HGET', KEYS[1], 'k') or ''} end
redis.call('HSET', KEYS[1], 'w', 1)
return {'', ''}
