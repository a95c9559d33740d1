-- Takes the client for this node. ARGV: 5 generation, 6 'fresh' or 'again', 7 ceiling,
-- 8 the node's time in ms, for people.
local generation, is_fresh, ceiling = tonumber(ARGV[5]), ARGV[6] == 'fresh', tonumber(ARGV[7])
local asked_again = is_mine and session.asked == generation

if session.ceiling < ceiling then
    session.ceiling_text = ARGV[7]
end
if is_fresh and asked_again then
    -- Sent twice: it stands.
    redis.call('HSET', sess, 'ceiling', session.ceiling_text or text(session.ceiling), 'lastSeen', ARGV[8])
elseif not is_fresh and (asked_again or (is_mine and session.generation == generation)) then
    if session.asked_ceiling ~= ceiling then
        -- A renewal: the take-over is long over.
        session.previous = nil
        session.asked_known = '1'
        redis.call('HSET', sess, 'ceiling', session.ceiling_text or text(session.ceiling), 'lastSeen', ARGV[8],
            'asked', ARGV[5] .. ' ' .. ARGV[7] .. ' 1')
    end
elseif not is_fresh and session.holder and session.generation >= generation then
    return elsewhere()
else
    session.asked_known = (session.generation > 0 or session.last > 0) and '1' or '0'
    if session.holder then
        -- Whoever held it may have issued all that it had reserved.
        session.last = math.max(session.last, session.ceiling)
        if not is_mine then
            session.previous, session.previous_life = session.holder, session.life
            session.previous_generation = session.generation
            redis.call('HSET', sess, 'previous', session.previous .. ' ' .. text(session.previous_life) .. ' '
                .. text(session.previous_generation))
        end
    end
    session.generation = math.min(math.max(generation, session.generation + 1), NUMBER_MAX)
    redis.call('HSET', sess, 'nodeId', node, 'incarnation', ARGV[4], 'generation', text(session.generation),
        'ceiling', session.ceiling_text or text(session.ceiling), 'lastSeen', ARGV[8], 'lastOffset', text(session.last),
        'asked', ARGV[5] .. ' ' .. ARGV[7] .. ' ' .. session.asked_known)
    if session.trimmed > 0 then
        redis.call('HDEL', sess, 'trimmedOffset')
    end
end
if values[11] and not session.previous then
    redis.call('HDEL', sess, 'previous')
end

if length > 0 then
    -- A message may live longer than this.
    outlive(sess, tonumber(ARGV[2]))
    outlive(buf, tonumber(ARGV[2]))
else
    redis.call('PEXPIRE', sess, ARGV[2])
end
local previous, previous_life, previous_generation = '', 0, 0
if session.previous and (session.previous ~= node or session.previous_life ~= incarnation) then
    previous, previous_life = session.previous, session.previous_life
    previous_generation = session.previous_generation
end
return { CLAIMED, expired, malformed, session.generation, session.last, session.lost, tonumber(session.asked_known),
    length > 0 and 1 or 0, previous, previous_life, previous_generation }
