-- clock: the time of the server's clock, in µs and in ms.
local t = redis.call('TIME')
local now_us = t[1] * 1000000 + t[2]
local now = math.floor(now_us / 1000)
