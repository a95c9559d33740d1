-- Keeps messages behind all that is kept, all of them or none.
-- ARGV: 5 'holder', 'other' or 'anyone'; 6 the holder's generation, or the node of a holder that does not count, or '';
--       7 that one's incarnation; 8 'free' when it may be refused, else 'owed'; 9 messages and 10 bytes that may be kept;
--       then for each message its offset (0: give it one), its meta and its body.
local author, is_free = ARGV[5], ARGV[8] == 'free'
local messages_max, bytes_max = tonumber(ARGV[9]), tonumber(ARGV[10])
local mine = is_mine

-- Takes out all entries above an offset, and lets the stream go on from there.
local function clear_above(offset)
    local entries
    repeat
        entries = redis.call('XRANGE', buf, '(' .. text(offset) .. '-0', '+', 'COUNT', CHUNK)
        for _, entry in ipairs(entries) do
            redis.call('XDEL', buf, entry[1])
        end
    until #entries < CHUNK
    length = redis.call('XLEN', buf)
    if length == 0 then
        redis.call('UNLINK', buf)
    else
        redis.call('XSETID', buf, text(offset) .. '-0')
    end
end

if session.holder and author == 'holder' then
    local generation = tonumber(ARGV[6])
    local may = mine and (session.generation <= generation or session.asked == generation)
    for _, former in ipairs(unreleased) do
        may = may or (is_me(former) and former[3] >= generation)
    end
    if not may then
        return { ELSEWHERE, expired, malformed, session.holder, session.life, session.generation }
    end
elseif session.holder and author == 'other' then
    local is_ours = session.holder == node and session.life <= incarnation
    local is_past = session.holder == ARGV[6] and session.life == tonumber(ARGV[7])
    if not is_ours and not is_past then
        return { ELSEWHERE, expired, malformed, session.holder, session.life, session.generation }
    end
end

if length > 0 then
    -- Only what has expired at the front: the sweep looks further.
    local entries = redis.call('XRANGE', buf, '-', '+', 'COUNT', 1)
    local first = entries[1] and decode(entries[1])
    if not first or first.expires <= now then
        local ids, cost = {}, 0
        for _, entry in ipairs(redis.call('XRANGE', buf, '-', '+', 'COUNT', EXPIRED_PER_APPEND_MAX)) do
            local message = decode(entry)
            if message and message.expires > now then
                break
            end
            ids[#ids + 1] = entry[1]
            if message then
                expired = expired + 1
                cost = cost + message.cost
                session.lost = math.max(session.lost, message.offset)
            else
                malformed = malformed + 1
            end
        end
        drop(ids, cost)
        redis.call('HSET', sess, 'lostOffset', text(session.lost), 'bytes', text(session.bytes), 'keptOffset',
            text(session.kept), 'lastOffset', text(session.last))
        outlive(sess, tonumber(ARGV[2]))
    end
end

local count = (#ARGV - 10) / 3
-- Where messages of this call go, and where those kept last stand: by identity. The latter are read when one is asked for;
-- a holder's next messages in order never are, and they are many when a client catches up.
local placed, seen = {}, nil
local function find_repeat(identity)
    if not seen then
        seen = {}
        local entries = length > 0 and redis.call('XREVRANGE', buf, '+', '-', 'COUNT', text(REPEAT_WINDOW + count)) or {}
        for _, entry in ipairs(entries) do
            local message = decode(entry)
            local known = message and string.match(message.meta, '^%d+')
            if known and not seen[known] then
                seen[known] = message.offset
            end
        end
    end
    return placed[identity] or seen[identity]
end

local kept_before = session.kept
local kept, last, answer = session.kept, session.last, session.kept
if not mine then
    last = math.max(last, session.ceiling)
end
local held = author == 'holder' and is_held_by(tonumber(ARGV[6]))
-- Of a login that others have followed meanwhile, to whom it was not known any more: they may be past its offsets.
local is_late = author == 'holder' and not session.holder and tonumber(ARGV[6]) < session.generation
local new, bytes, latest = {}, 0, 0
for at = 11, #ARGV, 3 do
    local offset, meta, body = tonumber(ARGV[at]), ARGV[at + 1], ARGV[at + 2]
    local is_given = offset ~= 0 and not is_late
    local is_below = is_given and offset <= kept
    local identity = string.match(meta, '^%d+')
    local is_done = is_below and held and offset <= session.trimmed
    if is_below and not is_done and length > 0 then
        -- Another message may stand there: one that was given too low a place before.
        local entry = redis.call('XRANGE', buf, text(offset), text(offset))[1]
        local message = entry and decode(entry)
        is_done = message and string.match(message.meta, '^%d+') == identity
    end
    local seen_at = (is_free or is_below or not is_given) and find_repeat(identity)
    if is_done then
        answer = offset
    elseif seen_at then
        answer = seen_at
    else
        if is_below or not is_given then
            -- One that was given too late gets its place behind what came before it.
            offset = math.min(math.max(last + 1, now * 4096), NUMBER_MAX)
        end
        -- All offsets that there are have been given away.
        if offset > NUMBER_MAX or offset <= kept then
            return { REFUSED, expired, malformed }
        end
        answer, kept, last = offset, offset, math.max(last, offset)
        placed[identity] = offset
        new[#new + 1] = { text(offset) .. '-0', meta, body }
        bytes = bytes + #body + OVERHEAD_BYTES
        latest = math.max(latest, tonumber(string.match(meta, '%d+$')))
    end
end
if #new > 0 then
    if is_free and (length + #new > messages_max or session.bytes + bytes > bytes_max) then
        return { REFUSED, expired, malformed }
    end
    local first = redis.pcall('XADD', buf, new[1][1], 'm', new[1][2], 'b', new[1][3])
    if type(first) == 'table' then
        -- Somebody else has written to the stream, above our ids: what is not ours goes.
        malformed = malformed + 1
        clear_above(kept_before)
        redis.call('XADD', buf, new[1][1], 'm', new[1][2], 'b', new[1][3])
    end
    for at = 2, #new do
        redis.call('XADD', buf, new[at][1], 'm', new[at][2], 'b', new[at][3])
    end
    redis.call('HSET', sess, 'keptOffset', text(kept), 'lastOffset', text(math.max(session.last, kept)),
        'bytes', text(session.bytes + bytes))
    -- The keys never go before their messages do.
    local ttl = math.max(tonumber(ARGV[2]), math.min(latest, NUMBER_MAX) - now + TTL_MARGIN_MS)
    outlive(sess, ttl)
    outlive(buf, ttl)
end
return { APPENDED, expired, malformed, answer }
