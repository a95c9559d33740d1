-- What every script of a client's session and replay buffer begins with. All that is read from a key is foreign: what
-- is not as it should be is dropped and counted in `malformed`, so that one bad value never stands in a client's way.
--
-- KEYS: 1 the session's hash, 2 the buffer's stream; one slot.
-- ARGV: 1 the time in ms, or '' for the server's own; 2 how long the keys outlive this call, in ms;
--       3 the calling node, 4 its incarnation; then what the script says.
-- Replies: a number that names the answer, how many messages expired, how many values were malformed, then its parts.

local CLAIMED, ELSEWHERE, APPENDED, REFUSED, OUT_OF_ORDER, PAGE, DONE, SWEPT = 1, 2, 3, 4, 5, 6, 7, 8
local CHUNK = 256

local sess, buf = KEYS[1], KEYS[2]
local node, incarnation = ARGV[3], tonumber(ARGV[4])
local expired, malformed = 0, 0

local now
if ARGV[1] ~= '' then
    now = tonumber(ARGV[1])
else
    local time = redis.call('TIME')
    now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

local function text(number)
    return string.format('%.0f', number)
end

local function parse(value)
    if value and #value <= 16 and string.find(value, '^%d+$') then
        local number = tonumber(value)
        if number <= NUMBER_MAX then
            return number
        end
    end
    return nil
end

-- A number that is 0 where it is absent.
local function whole(value)
    if not value then
        return 0
    end
    local number = parse(value)
    if not number then
        malformed = malformed + 1
    end
    return number or 0
end

local function is_node_id(value)
    return #value <= 64 and string.find(value, '^[%w._-]+$') ~= nil
end

-- Asks for a key's value; one of another type is put out of the way.
local function read(command, key, ...)
    local reply = redis.pcall(command, key, ...)
    if type(reply) == 'table' and reply.err then
        if not string.find(reply.err, 'WRONGTYPE', 1, true) then
            error(reply)
        end
        redis.call('UNLINK', key)
        malformed = malformed + 1
        return nil
    end
    return reply
end

-- An entry of the stream as {offset, cost, expires, meta, body}; nil when it is none of ours.
local function decode(entry)
    local offset = parse(string.match(entry[1], '^(%d+)-0$'))
    local fields = entry[2]
    if not offset or not fields or #fields ~= 4 or fields[1] ~= 'm' or fields[3] ~= 'b' then
        return nil
    end
    local meta, body = fields[2], fields[4]
    if #meta > META_BYTES_MAX or #body > BODY_BYTES_MAX then
        return nil
    end
    local expires = string.match(meta, '^%d+ %d+ %d+ (%d+)$')
    if not expires then
        return nil
    end
    return { offset = offset, cost = #body + OVERHEAD_BYTES, expires = tonumber(expires), meta = meta, body = body }
end

local session = {}
local length = 0

local function load()
    local values = read('HMGET', sess, 'nodeId', 'incarnation', 'generation', 'ceiling', 'lastOffset', 'keptOffset',
        'lostOffset', 'trimmedOffset', 'bytes', 'asked', 'previous') or {}
    length = read('XLEN', buf) or 0
    session.generation = whole(values[3])
    session.ceiling = whole(values[4])
    session.last = whole(values[5])
    session.kept = whole(values[6])
    session.lost = whole(values[7])
    session.trimmed = whole(values[8])
    session.bytes = whole(values[9])
    session.asked, session.asked_ceiling, session.asked_known = 0, 0, 0
    if values[1] then
        local life = parse(values[2])
        if life and values[3] and is_node_id(values[1]) then
            session.holder, session.life = values[1], life
        else
            malformed = malformed + 1
        end
    end
    if values[10] then
        local generation, ceiling, known = string.match(values[10], '^(%d+) (%d+) ([01])$')
        generation, ceiling = parse(generation), parse(ceiling)
        if generation and ceiling then
            session.asked, session.asked_ceiling, session.asked_known = generation, ceiling, tonumber(known)
        else
            malformed = malformed + 1
        end
    end
    if values[11] then
        local holder, life, generation = string.match(values[11], '^(%S+) (%d+) (%d+)$')
        life, generation = parse(life), parse(generation)
        if life and generation and is_node_id(holder) then
            session.previous, session.previous_life, session.previous_generation = holder, life, generation
        else
            malformed = malformed + 1
        end
    end
    if length > 0 and (session.kept == 0 or not values[9]) then
        -- The hash is gone, the stream is not: the stream still knows.
        local info = redis.call('XINFO', 'STREAM', buf)
        for at = 1, #info, 2 do
            if info[at] == 'last-generated-id' then
                session.kept = math.min(tonumber(string.match(info[at + 1], '^(%d+)')), NUMBER_MAX)
            end
        end
        session.bytes = 0
        local from = '-'
        repeat
            local entries = redis.call('XRANGE', buf, from, '+', 'COUNT', CHUNK)
            for _, entry in ipairs(entries) do
                local message = decode(entry)
                session.bytes = session.bytes + (message and message.cost or 0)
                from = '(' .. entry[1]
            end
        until #entries < CHUNK
    end
    session.last = math.max(session.last, session.kept)
end

local function is_mine()
    return session.holder == node and session.life == incarnation
end

-- Whether this login holds the client, under the generation it has or the one it had asked for.
local function is_held_by(generation)
    return is_mine() and (session.generation == generation or session.asked == generation)
end

local function outlive(key, ttl)
    if redis.call('PTTL', key) < ttl then
        redis.call('PEXPIRE', key, text(ttl))
    end
end

-- Takes messages out; `ids` as they stand in the stream, `cost` what they cost together.
local function drop(ids, cost)
    for from = 1, #ids, CHUNK do
        redis.call('XDEL', buf, unpack(ids, from, math.min(from + CHUNK - 1, #ids)))
    end
    length = redis.call('XLEN', buf)
    if length == 0 then
        redis.call('UNLINK', buf)
        session.bytes = 0
    else
        session.bytes = math.max(session.bytes - cost, 0)
    end
end

-- Looks at the messages from `from` on, oldest first, and drops the expired and the malformed ones. Goes on while
-- `visit`, which gets the good ones, returns true; without `visit`, through all of them.
local function walk(from, visit)
    local ids, cost, count, goes_on = {}, 0, 0, true
    while goes_on do
        local entries = redis.call('XRANGE', buf, from, '+', 'COUNT', CHUNK)
        for _, entry in ipairs(entries) do
            from = '(' .. entry[1]
            local message = decode(entry)
            if not message then
                malformed = malformed + 1
                ids[#ids + 1] = entry[1]
            elseif message.expires <= now then
                expired = expired + 1
                count = count + 1
                ids[#ids + 1] = entry[1]
                cost = cost + message.cost
                session.lost = math.max(session.lost, message.offset)
            elseif visit and not visit(message) then
                goes_on = false
                break
            end
        end
        if #entries < CHUNK then
            break
        end
    end
    if #ids > 0 then
        drop(ids, cost)
        redis.call('HSET', sess, 'lostOffset', text(session.lost), 'bytes', text(session.bytes), 'keptOffset',
            text(session.kept), 'lastOffset', text(session.last))
        outlive(sess, tonumber(ARGV[2]))
    end
end

local function elsewhere()
    return { ELSEWHERE, expired, malformed, session.holder, session.life, session.generation }
end
