#!lua flags=no-writes
-- permit: which commands of asyncjobs this user may not run. It only asks, so it can run on any node of a Cluster.
--
-- ARGV[1] key        a key of the installation
-- ARGV[2] channel    a channel of the installation
--
-- Returns the commands that are denied
local key, channel = ARGV[1], ARGV[2]
local denied = {}
for _, command in ipairs({
  {'DEL', key}, {'EXISTS', key}, {'GET', key}, {'HDEL', key, 'f'}, {'HEXISTS', key, 'f'}, {'HGET', key, 'f'}, {'HGETALL', key}, {'HKEYS', key},
  {'HINCRBY', key, 'f', '1'}, {'HLEN', key}, {'HMGET', key, 'f'}, {'HSET', key, 'f', 'v'}, {'HSETNX', key, 'f', 'v'},
  {'LINDEX', key, '0'}, {'LLEN', key}, {'LRANGE', key, '0', '1'}, {'LSET', key, '0', 'v'}, {'LTRIM', key, '0', '1'}, {'PERSIST', key}, {'PEXPIRE', key, '1'},
  {'PING'}, {'PTTL', key}, {'PUBLISH', channel, ''}, {'RPUSH', key, 'v'},
  {'SET', key, 'v'}, {'SUBSCRIBE', channel}, {'TIME'}, {'UNLINK', key}, {'WAIT', '1', '1'}, {'XACK', key, 'w', '1'},
  {'XADD', key, '*', 'j', 'v'}, {'XCLAIM', key, 'w', 'p', '0', '1'}, {'XDEL', key, '1'},
  {'XGROUP', 'CREATE', key, 'w', '0'}, {'XGROUP', 'DELCONSUMER', key, 'w', 'p'},
  {'XINFO', 'CONSUMERS', key, 'w'}, {'XINFO', 'GROUPS', key}, {'XLEN', key}, {'XPENDING', key, 'w'},
  {'XRANGE', key, '-', '+'}, {'XREADGROUP', 'GROUP', 'w', 'p', 'STREAMS', key, '>'},
  {'XREVRANGE', key, '+', '-'}, {'XTRIM', key, 'MINID', '=', '1'},
  {'ZADD', key, '1', 'm'},
  {'ZCARD', key}, {'ZCOUNT', key, '0', '1'}, {'ZMSCORE', key, 'm'}, {'ZRANGE', key, '0', '0'},
  {'ZRANGEBYSCORE', key, '0', '1'}, {'ZRANK', key, 'm'}, {'ZREM', key, 'm'},
  {'ZSCAN', key, '0'}, {'ZSCORE', key, 'm'},
}) do
  if not redis.acl_check_cmd(unpack(command)) then
    local of_a_kind = command[1] == 'XGROUP' or command[1] == 'XINFO'
    denied[#denied + 1] = of_a_kind and command[1] .. ' ' .. command[2] or command[1]
  end
end
return denied
