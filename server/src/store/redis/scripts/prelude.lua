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

-- Keeps a key for so many ms at least. It may be kept longer, by an eighth: then the next calls need not say so again,
-- and each time that is said costs Redis as much as a small write.
local function outlive(key, ttl)
    if redis.call('PTTL', key) < ttl then
        redis.call('PEXPIRE', key, math.floor(ttl * 9 / 8))
    end
end

local values = redis.pcall('HMGET', sess, 'nodeId', 'incarnation', 'generation', 'ceiling', 'lastOffset', 'keptOffset',
    'lostOffset', 'trimmedOffset', 'bytes', 'asked', 'unreleased')
local length = 0
if values[9] or not values[3] then
    -- There may be messages: their bytes are noted, or nothing is.
    length = redis.pcall('XLEN', buf)
end
if values.err or type(length) == 'table' then
    -- A value of another type is put out of the way.
    for key, reply in pairs({ [sess] = values, [buf] = length }) do
        local err = type(reply) == 'table' and reply.err
        if err and not string.find(err, 'WRONGTYPE', 1, true) then
            error({ err = err })
        elseif err then
            redis.call('UNLINK', key)
            malformed = malformed + 1
        end
    end
    values, length = values.err and {} or values, type(length) == 'table' and 0 or length
end
local is_held, is_weighed, ceiling_noted = values[1] and values[2] and values[3], values[9], values[4]
-- A number is 0 where it is absent.
for at = 2, 9 do
    local number = 0
    if values[at] then
        number = tonumber(values[at])
        if not number or number < 0 or number > NUMBER_MAX or number % 1 ~= 0 then
            number, malformed = 0, malformed + 1
        end
    end
    values[at] = number
end
local session = {
    generation = values[3],
    ceiling = values[4],
    last = values[5],
    kept = values[6],
    lost = values[7],
    trimmed = values[8],
    bytes = values[9],
    asked = 0,
}
local is_mine = false
if values[1] then
    is_mine = is_held and values[1] == node and values[2] == incarnation
    if is_mine or (is_held and #values[1] <= 64 and string.find(values[1], '^[%w._-]+$')) then
        session.holder, session.life = values[1], values[2]
    else
        malformed = malformed + 1
    end
end
-- What this login had asked for: whether the client was known then, alone where it was given what it asked for.
if values[10] and is_mine then
    local generation, ceiling, known = session.generation, session.ceiling, values[10]
    if #known > 1 then
        generation, ceiling, known = string.match(known, '^(%d+) (%d+) ([01])$')
        generation, ceiling = tonumber(generation or ''), tonumber(ceiling or '')
    end
    if generation and generation <= NUMBER_MAX and ceiling <= NUMBER_MAX and (known == '0' or known == '1') then
        session.asked, session.asked_ceiling, session.asked_known = generation, ceiling, known
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
            local holder, life, generation = string.match(entry, '^([%w._-]+) (%d+) (%d+)$')
            life, generation, count = tonumber(life or ''), tonumber(generation or ''), count + 1
            if holder and #holder <= 64 and life <= NUMBER_MAX and generation <= NUMBER_MAX
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
local is_lost = length > 0 and (session.kept == 0 or not is_weighed)
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
