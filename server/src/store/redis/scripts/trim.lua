-- Drops the messages up to an offset, if this login holds the client. ARGV: 5 generation, 6 offset.
local offset = tonumber(ARGV[6])
if is_held_by(tonumber(ARGV[5])) then
    if length > 0 then
        local ids, cost, from = {}, 0, '-'
        repeat
            local entries = redis.call('XRANGE', buf, from, text(offset), 'COUNT', CHUNK)
            for _, entry in ipairs(entries) do
                from = '(' .. entry[1]
                local message = decode(entry)
                ids[#ids + 1] = entry[1]
                cost = cost + (message and message.cost or 0)
                malformed = malformed + (message and 0 or 1)
            end
        until #entries < CHUNK
        if #ids > 0 then
            drop(ids, cost)
        end
    end
    redis.call('HSET', sess, 'trimmedOffset', text(math.max(session.trimmed, offset)), 'bytes', text(session.bytes),
        'keptOffset', text(session.kept))
end
return { DONE, expired, malformed }
