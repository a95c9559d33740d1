-- What every script of a client's session and replay buffer begins with. All that is read from a key is foreign: what
-- is not as it should be is dropped and counted in `malformed`, so that one bad value never stands in a client's way.
--
-- KEYS: 1 the session's hash, 2 the buffer's stream; one slot.
-- ARGV: 1 the time in ms, or '' for the server's own; 2 how long the keys outlive this call, in ms;
--       3 the calling node, 4 its incarnation; then what the script says.
-- Replies: a number that names the answer, how many messages expired, how many values were malformed, then its parts.

local CLAIMED, ELSEWHERE, APPENDED, REFUSED, PAGE, DONE, SWEPT = 1, 2, 3, 4, 6, 7, 8
local CHUNK = 256

local sess, buf = KEYS[1], KEYS[2]
local node, incarnation = ARGV[3], tonumber(ARGV[4])
local expired, malformed = 0, 0

local function text(number)
    return string.format('%.0f', number)
end

-- A number that is 0 where it is absent.
local function whole(value)
    if not value then
        return 0
    end
    local number = tonumber(value)
    if number and number >= 0 and number <= NUMBER_MAX and number % 1 == 0 then
        return number
    end
    malformed = malformed + 1
    return 0
end

local function is_node_id(value)
    return #value <= 64 and string.find(value, '^[%w._-]+$') ~= nil
end

-- A value of another type is put out of the way.
local function heal(key, err)
    if not string.find(err, 'WRONGTYPE', 1, true) then
        error({ err = err })
    end
    redis.call('UNLINK', key)
    malformed = malformed + 1
end

local values = redis.pcall('HMGET', sess, 'nodeId', 'incarnation', 'generation', 'ceiling', 'lastOffset', 'keptOffset',
    'lostOffset', 'trimmedOffset', 'bytes', 'asked', 'unreleased')
if values.err then
    heal(sess, values.err)
    values = {}
end
local length = 0
if values[9] or not values[3] then
    -- There may be messages: their bytes are noted, or nothing is.
    length = redis.pcall('XLEN', buf)
    if type(length) == 'table' then
        heal(buf, length.err)
        length = 0
    end
end
local session = {
    generation = whole(values[3]),
    ceiling = whole(values[4]),
    last = whole(values[5]),
    kept = whole(values[6]),
    lost = whole(values[7]),
    trimmed = whole(values[8]),
    bytes = whole(values[9]),
    asked = 0,
}
local is_mine = false
if values[1] then
    local life = whole(values[2])
    if values[2] and values[3] and (values[1] == node or is_node_id(values[1])) then
        session.holder, session.life = values[1], life
        is_mine = values[1] == node and life == incarnation
    else
        malformed = malformed + 1
    end
end
if values[10] and is_mine then
    local generation, ceiling, known = string.match(values[10], '^(%d+) (%d+) ([01])$')
    if generation then
        session.asked, session.asked_ceiling, session.asked_known = whole(generation), whole(ceiling), known
    else
        malformed = malformed + 1
    end
end
-- Who held it before and has not released it yet, latest last.
local unreleased, must_note_unreleased = {}, false
if values[11] then
    local is_good, count = #values[11] <= UNRELEASED_BYTES_MAX, 0
    if is_good then
        for entry in string.gmatch(values[11] .. ',', '([^,]*),') do
            local holder, life, generation = string.match(entry, '^(%S+) (%d+) (%d+)$')
            life, generation, count = tonumber(life or ''), tonumber(generation or ''), count + 1
            if holder and is_node_id(holder) and life <= NUMBER_MAX and generation <= NUMBER_MAX
                and count <= UNRELEASED_MAX then
                unreleased[#unreleased + 1] = { holder, life, generation }
            else
                is_good = false
            end
        end
    end
    if not is_good then
        malformed, must_note_unreleased = malformed + 1, true
    end
end
local is_lost = length > 0 and (session.kept == 0 or not values[9])
if is_lost then
    -- The hash is gone, the stream is not: the stream still knows.
    local info = redis.call('XINFO', 'STREAM', buf)
    for at = 1, #info, 2 do
        if info[at] == 'last-generated-id' then
            session.kept = tonumber(string.match(info[at + 1], '^(%d+)'))
        end
    end
    if session.kept > NUMBER_MAX then
        -- Not one of ours.
        local entry = redis.call('XREVRANGE', buf, text(NUMBER_MAX) .. '-0', '-', 'COUNT', 1)[1]
        session.kept = entry and tonumber(string.match(entry[1], '^(%d+)')) or 0
        malformed = malformed + 1
    end
end
if session.last < session.kept then
    session.last = session.kept
end

-- Whether this login holds the client, under the generation it has or the one it had asked for.
local function is_held_by(generation)
    return is_mine and (session.generation == generation or session.asked == generation)
end

-- Whether this life of this node is the former holder.
local function is_me(former)
    return former[1] == node and former[2] == incarnation
end

-- Writes the former holders down, where they are not what stands there.
local function note_unreleased()
    if not must_note_unreleased then
        return
    end
    if #unreleased == 0 then
        redis.call('HDEL', sess, 'unreleased')
        return
    end
    local entries = {}
    for at, former in ipairs(unreleased) do
        entries[at] = former[1] .. ' ' .. text(former[2]) .. ' ' .. text(former[3])
    end
    redis.call('HSET', sess, 'unreleased', table.concat(entries, ','))
end

local function clear_unreleased()
    if #unreleased > 0 then
        unreleased, must_note_unreleased = {}, true
    end
end

local function outlive(key, ttl)
    if redis.call('PTTL', key) < ttl then
        redis.call('PEXPIRE', key, text(ttl))
    end
end

local function elsewhere()
    return { ELSEWHERE, expired, malformed, session.holder, session.life, session.generation }
end
