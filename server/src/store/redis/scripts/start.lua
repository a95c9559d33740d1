-- Takes a node's id for a new life of it. KEYS: 1 heartbeats, 2 the life's number. ARGV: 1 node, 2 the new life's number,
-- 3 how long a node may be silent in ms.
-- Replies {1, the life's number}, or {0, when the node that has the id was last heard of}.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local life = redis.pcall('GET', KEYS[2])
if type(life) == 'table' or (life and not string.find(life, '^%d+$')) or (life and #life > 16) then
    redis.call('UNLINK', KEYS[2])
    life = false
end
local heard = redis.pcall('ZSCORE', KEYS[1], ARGV[1])
if type(heard) == 'table' then
    redis.call('UNLINK', KEYS[1])
    heard = false
end
heard = tonumber(heard or '0')
if life and life ~= ARGV[2] and heard > now - tonumber(ARGV[3]) and heard <= now + tonumber(ARGV[3]) then
    return { 0, heard }
end
local number = tonumber(ARGV[2])
if life and life ~= ARGV[2] then
    number = math.max(number, tonumber(life) + 1)
end
number = string.format('%.0f', number)
redis.call('SET', KEYS[2], number)
redis.call('ZADD', KEYS[1], string.format('%.0f', now), ARGV[1])
return { 1, tonumber(number) }
