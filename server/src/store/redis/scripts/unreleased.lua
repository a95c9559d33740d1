-- What claims and releases end with: the former holders are written down, where they are not what stands there.
if must_note_unreleased and #unreleased == 0 then
    redis.call('HDEL', sess, 'unreleased')
elseif must_note_unreleased then
    local entries = {}
    for at, former in ipairs(unreleased) do
        entries[at] = former[1] .. ' ' .. text(former[2]) .. ' ' .. text(former[3])
    end
    redis.call('HSET', sess, 'unreleased', table.concat(entries, ','))
end
return reply
