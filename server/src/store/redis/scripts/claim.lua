-- Takes the client for this node. ARGV: 5 generation, 6 'fresh' or 'again', 7 ceiling.
load()
local generation, is_fresh, ceiling = tonumber(ARGV[5]), ARGV[6] == 'fresh', tonumber(ARGV[7])
local mine = is_mine()
local asked_again = mine and session.asked == generation

if is_fresh and asked_again then
    -- Sent twice: it stands.
elseif not is_fresh and (asked_again or (mine and session.generation == generation)) then
    if session.asked_ceiling ~= ceiling then
        -- A renewal: the take-over is long over.
        session.previous = nil
        session.asked, session.asked_ceiling, session.asked_known = generation, ceiling, 1
    end
elseif not is_fresh and session.holder and session.generation >= generation then
    return elsewhere()
else
    local known = (session.generation > 0 or session.last > 0) and 1 or 0
    if session.holder then
        -- Whoever held it may have issued all that it had reserved.
        session.last = math.max(session.last, session.ceiling)
        if not mine then
            session.previous, session.previous_life = session.holder, session.life
            session.previous_generation = session.generation
        end
    end
    session.generation = math.min(math.max(generation, session.generation + 1), NUMBER_MAX)
    session.asked, session.asked_ceiling, session.asked_known = generation, ceiling, known
    session.trimmed = 0
end
session.ceiling = math.max(session.ceiling, ceiling)

redis.call('HSET', sess, 'nodeId', node, 'incarnation', ARGV[4], 'generation', text(session.generation),
    'ceiling', text(session.ceiling), 'lastOffset', text(session.last), 'trimmedOffset', text(session.trimmed),
    'asked', text(session.asked) .. ' ' .. text(session.asked_ceiling) .. ' ' .. session.asked_known,
    'lastSeen', text(now))
local previous, previous_life, previous_generation = '', 0, 0
if session.previous then
    redis.call('HSET', sess, 'previous', session.previous .. ' ' .. text(session.previous_life) .. ' '
        .. text(session.previous_generation))
    if session.previous ~= node or session.previous_life ~= incarnation then
        previous, previous_life = session.previous, session.previous_life
        previous_generation = session.previous_generation
    end
else
    redis.call('HDEL', sess, 'previous')
end
outlive(sess, tonumber(ARGV[2]))
if length > 0 then
    outlive(buf, tonumber(ARGV[2]))
end
return { CLAIMED, expired, malformed, session.generation, session.last, session.lost, session.asked_known,
    length > 0 and 1 or 0, previous, previous_life, previous_generation }
