-- Takes the client for this node. ARGV: 5 generation, 6 'fresh' or 'again', 7 ceiling,
-- 8 the node's time in ms, for people.
local generation, is_fresh, ceiling = tonumber(ARGV[5]), ARGV[6] == 'fresh', tonumber(ARGV[7])
local asked_again = is_mine and session.asked == generation

-- Up to where the holder may issue offsets from now on.
local function reserved()
    return text(math.min(math.max(session.ceiling, ceiling, session.last + OFFSETS_RESERVED_MIN), NUMBER_MAX))
end

if (is_fresh and asked_again) or (not is_fresh and is_mine and (asked_again or session.generation == generation)) then
    if is_fresh or session.asked_ceiling == ceiling then
        -- Sent twice: it stands.
        redis.call('HSET', sess, 'ceiling', reserved(), 'lastSeen', ARGV[8])
    else
        -- A renewal: the take-over is long over.
        clear_unreleased()
        session.asked_known = '1'
        redis.call('HSET', sess, 'ceiling', reserved(), 'lastSeen', ARGV[8],
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
            unreleased[#unreleased + 1] = { session.holder, session.life, session.generation }
            if #unreleased > UNRELEASED_MAX then
                table.remove(unreleased, 1)
            end
            must_note_unreleased = true
        end
    end
    session.generation = math.min(math.max(generation, session.generation + 1), NUMBER_MAX)
    redis.call('HSET', sess, 'nodeId', node, 'incarnation', ARGV[4], 'generation', text(session.generation),
        'ceiling', reserved(), 'lastSeen', ARGV[8], 'lastOffset', text(session.last),
        'asked', ARGV[5] .. ' ' .. ARGV[7] .. ' ' .. session.asked_known)
    if session.trimmed > 0 then
        redis.call('HDEL', sess, 'trimmedOffset')
    end
end
note_unreleased()

if length > 0 then
    -- A message may live longer than this.
    outlive(sess, tonumber(ARGV[2]))
    outlive(buf, tonumber(ARGV[2]))
else
    redis.call('PEXPIRE', sess, ARGV[2])
end
local reply = { CLAIMED, expired, malformed, session.generation, session.last, session.lost,
    tonumber(session.asked_known), length > 0 and 1 or 0 }
for _, former in ipairs(unreleased) do
    if not is_me(former) then
        for _, part in ipairs(former) do
            reply[#reply + 1] = part
        end
    end
end
return reply
