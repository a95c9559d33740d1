-- Gives a lease back. KEYS: 1 the lease. ARGV: 1 who.
local value = redis.pcall('GET', KEYS[1])
if type(value) == 'string' and #value <= 256 and string.match(value, '^%d+ (.+)$') == ARGV[1] then
    redis.call('DEL', KEYS[1])
end
return { 1 }
