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
-- Free; or a value that is no lease, or one that would never end.
local next = redis.pcall('INCR', KEYS[2])
if type(next) == 'table' then
    redis.call('UNLINK', KEYS[2])
    -- Tokens only rise: above all that the time could have counted.
    local time = redis.call('TIME')
    next = tonumber(time[1]) * 1000
    redis.call('SET', KEYS[2], string.format('%.0f', next))
end
redis.call('SET', KEYS[1], string.format('%.0f', next) .. ' ' .. ARGV[1], 'PX', ARGV[2])
return { 1, next }
