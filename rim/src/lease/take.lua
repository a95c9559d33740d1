-- Takes or keeps a lease. KEYS: 1 the lease, 2 the counter its tokens come from. ARGV: 1 who, 2 for how long in ms.
-- The lease's value is `token who`. Replies {1, token} when it is held now, else {0}.
local value = redis.pcall('GET', KEYS[1])
if type(value) == 'table' then
    redis.call('UNLINK', KEYS[1])
    value = false
end
local token, who
if value and #value <= 256 then
    token, who = string.match(value, '^(%d+) (.+)$')
end
if who == ARGV[1] then
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
    return { 1, tonumber(token) }
end
if who and redis.call('PTTL', KEYS[1]) > 0 then
    return { 0 }
end
-- Free; or a value that is no lease, or one that would never end. Tokens only rise: also above all that the time could
-- have counted, in ms. A counter that was lost, or fell back with a replica, would give tokens below those that Kafka
-- has noted, and the topic would be read by nobody any more.
local time = redis.call('TIME')
local next = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local counted = redis.pcall('INCR', KEYS[2])
if type(counted) == 'number' and counted > next and counted < 2 ^ 53 then
    next = counted
end
redis.call('SET', KEYS[2], string.format('%.0f', next))
redis.call('SET', KEYS[1], string.format('%.0f', next) .. ' ' .. ARGV[1], 'PX', ARGV[2])
return { 1, next }
