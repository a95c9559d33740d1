-- Takes the client for this node. ARGV: 5 generation, 6 'fresh' or 'again', 7 ceiling,
-- 8 the node's time in ms, for people.
--
-- Of all scripts this one is called most. A closure, a number written as text and a command each cost it some percent,
-- so it makes few of them: what was given as text is noted as that text.
local generation, is_fresh, ceiling = tonumber(ARGV[5]), ARGV[6] == 'fresh', tonumber(ARGV[7])
local is_asked_again = is_mine and session.asked == generation
local last_noted, generation_noted

if (is_fresh and is_asked_again) or (not is_fresh and is_mine and (is_asked_again or session.generation == generation)) then
    -- Sent twice, it stands. Else it is a renewal: the take-over is long over.
    if not is_fresh and session.asked_ceiling ~= ceiling then
        session.asked, session.asked_ceiling, session.asked_known = generation, ceiling, '1'
        if #unreleased > 0 then
            unreleased, must_note_unreleased = {}, true
        end
    end
elseif not is_fresh and session.holder and session.generation >= generation then
    return { ELSEWHERE, expired, malformed, session.holder, session.life, session.generation }
else
    session.asked, session.asked_ceiling = generation, ceiling
    session.asked_known = (session.generation > 0 or session.last > 0) and '1' or '0'
    last_noted = session.last
    if session.holder then
        if session.last < session.ceiling then
            -- Whoever held it may have issued all that it had reserved.
            session.last, last_noted = session.ceiling, ceiling_noted
        end
        if not is_mine then
            unreleased[#unreleased + 1] = { session.holder, session.life, session.generation }
            if #unreleased > UNRELEASED_MAX then
                table.remove(unreleased, 1)
            end
            must_note_unreleased = true
        end
    end
    if session.generation < generation then
        session.generation, generation_noted = generation, ARGV[5]
    else
        session.generation = math.min(session.generation + 1, NUMBER_MAX)
        generation_noted = session.generation
    end
end

-- Up to where the holder may issue offsets from now on.
local reserved, reserved_noted = ceiling, ARGV[7]
if reserved < session.ceiling then
    reserved, reserved_noted = session.ceiling, ceiling_noted
end
if reserved < session.last + OFFSETS_RESERVED_MIN then
    reserved = math.min(session.last + OFFSETS_RESERVED_MIN, NUMBER_MAX)
    reserved_noted = reserved
end
local asked = session.asked_known
if session.asked ~= session.generation or session.asked_ceiling ~= reserved then
    asked = text(session.asked) .. ' ' .. text(session.asked_ceiling) .. ' ' .. asked
end
if not last_noted then
    redis.call('HSET', sess, 'ceiling', reserved_noted, 'lastSeen', ARGV[8], 'asked', asked)
elseif is_mine then
    redis.call('HSET', sess, 'generation', generation_noted, 'ceiling', reserved_noted, 'lastSeen', ARGV[8],
        'lastOffset', last_noted, 'asked', asked)
else
    redis.call('HSET', sess, 'nodeId', node, 'incarnation', ARGV[4], 'generation', generation_noted,
        'ceiling', reserved_noted, 'lastSeen', ARGV[8], 'lastOffset', last_noted, 'asked', asked)
end
if last_noted and session.trimmed > 0 then
    redis.call('HDEL', sess, 'trimmedOffset')
end
local ttl = tonumber(ARGV[2])
if values[3] == 0 and length == 0 then
    -- Nobody has claimed it before, nor does anything wait.
    redis.call('PEXPIRE', sess, ARGV[2])
else
    outlive(sess, ttl)
end
if length > 0 then
    outlive(buf, ttl)
end

local reply = { CLAIMED, expired, malformed, session.generation, session.last, session.lost,
    session.asked_known == '1' and 1 or 0, length > 0 and 1 or 0 }
for at = 1, #unreleased do
    local former = unreleased[at]
    if former[1] ~= node or former[2] ~= incarnation then
        for _, part in ipairs(former) do
            reply[#reply + 1] = part
        end
    end
end
