-- news: tell the processes that serve a queue that it has work, now or in some ms.
local function tell_news(channel, group, ms)
  redis.call('PUBLISH', channel, (ms and string.format('%.0f', ms) or '0') .. '|' .. group)
end
