-- What the scripts that look into the buffer share.

local now
if ARGV[1] ~= '' then
    now = tonumber(ARGV[1])
else
    local time = redis.call('TIME')
    now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- An entry of the stream as {offset, cost, expires, meta, body}; nil when it is none of ours.
local function decode(entry)
    local offset = tonumber(string.match(entry[1], '^(%d+)-0$') or '')
    local fields = entry[2]
    if not offset or offset > NUMBER_MAX or not fields or #fields ~= 4 or fields[1] ~= 'm' or fields[3] ~= 'b' then
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

if is_lost then
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
