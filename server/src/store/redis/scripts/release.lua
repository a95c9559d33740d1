-- Lets go of the client. ARGV: 5 generation, 6 the last offset that was given,
-- 7 the node's time in ms, for people.
local generation, last = tonumber(ARGV[5]), tonumber(ARGV[6])
for at = #unreleased, 1, -1 do
    if is_me(unreleased[at]) and unreleased[at][3] <= generation then
        table.remove(unreleased, at)
        must_note_unreleased = true
    end
end
if is_held_by(generation) then
    redis.call('HDEL', sess, 'nodeId', 'incarnation')
    session.holder, session.ceiling = nil, 0
    if #unreleased > 0 then
        unreleased, must_note_unreleased = {}, true
    end
end
if not session.holder then
    session.generation = math.max(session.generation, generation)
    session.last = math.max(session.last, last)
    redis.call('HSET', sess, 'generation', text(session.generation), 'ceiling', text(session.ceiling),
        'lastOffset', text(session.last), 'lastSeen', ARGV[7])
    outlive(sess, tonumber(ARGV[2]))
end
local reply = { DONE, expired, malformed }
