-- Drops every message that is too old, and tells when the next one will be.
local earliest = 0
if length > 0 then
    walk('-', function(message)
        if earliest == 0 or message.expires < earliest then
            earliest = message.expires
        end
        return true
    end)
end
return { SWEPT, expired, malformed, earliest }
