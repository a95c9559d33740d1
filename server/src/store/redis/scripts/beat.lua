-- A node is alive, and hears who else is. KEYS: 1 heartbeats, 2 its life's number, 3 its last heartbeat.
-- ARGV: 1 node, 2 its life's number, 3 its heartbeat as JSON, 4 how long that is kept in s, 5 how long a node may be silent
-- in ms, 6 nodes to tell of, 7 bytes of one heartbeat, 8 how long a silent node is remembered in ms.
-- Replies {0} when another life has the id, else {1, now, when it was last heard of, values refused, then for each live
-- node its id and its heartbeat}.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local silence, malformed = tonumber(ARGV[5]), 0
local life = redis.pcall('GET', KEYS[2])
if type(life) == 'string' and life ~= ARGV[2] and #life <= 16 and string.find(life, '^%d+$') then
    return { 0 }
end
if life ~= ARGV[2] then
    -- Lost, or somebody else's value.
    if life then
        malformed = malformed + 1
    end
    redis.call('SET', KEYS[2], ARGV[2])
end
local heard = redis.pcall('ZSCORE', KEYS[1], ARGV[1])
if type(heard) == 'table' then
    redis.call('UNLINK', KEYS[1])
    malformed, heard = malformed + 1, false
end
redis.call('ZADD', KEYS[1], string.format('%.0f', now), ARGV[1])
redis.call('SET', KEYS[3], ARGV[3], 'EX', ARGV[4])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now - tonumber(ARGV[8])))
local reply = { 1, now, math.floor(tonumber(heard or '0')), 0 }
local nodes = redis.call('ZRANGEBYSCORE', KEYS[1], string.format('%.0f', now - silence),
    string.format('%.0f', now + silence), 'LIMIT', 0, ARGV[6])
local prefix = string.sub(KEYS[3], 1, #KEYS[3] - #ARGV[1])
for _, node in ipairs(nodes) do
    if #node > 64 then
        malformed = malformed + 1
    else
        local key = prefix .. node
        local len = redis.pcall('STRLEN', key)
        if type(len) == 'table' or len > tonumber(ARGV[7]) then
            malformed = malformed + 1
        elseif len > 0 then
            reply[#reply + 1] = node
            reply[#reply + 1] = redis.call('GET', key)
        end
    end
end
reply[4] = malformed
return reply
