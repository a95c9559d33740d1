-- Drops one message, if this login holds the client. ARGV: 5 generation, 6 offset.
if length > 0 and is_held_by(tonumber(ARGV[5])) then
    local entry = redis.call('XRANGE', buf, ARGV[6], ARGV[6])[1]
    if entry then
        local message = decode(entry)
        malformed = malformed + (message and 0 or 1)
        drop({ entry[1] }, message and message.cost or 0)
        redis.call('HSET', sess, 'bytes', text(session.bytes), 'keptOffset', text(session.kept))
    end
end
return { DONE, expired, malformed }
