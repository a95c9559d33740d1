-- Reads messages, oldest first. ARGV: 5 after which offset, 6 about how many bytes.
local reply, bytes, bytes_max = { PAGE, 0, 0 }, 0, tonumber(ARGV[6])
if length > 0 then
    walk('(' .. ARGV[5] .. '-0', function(message)
        if #reply > 3 and bytes >= bytes_max then
            return false
        end
        bytes = bytes + message.cost
        reply[#reply + 1] = text(message.offset)
        reply[#reply + 1] = message.meta
        reply[#reply + 1] = message.body
        return true
    end)
end
reply[2], reply[3] = expired, malformed
return reply
