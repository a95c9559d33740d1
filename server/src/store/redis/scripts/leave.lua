-- A node ends in good order: nobody need wait until it is silent. KEYS and ARGV 1 and 2 as in beat.lua.
if redis.pcall('GET', KEYS[2]) == ARGV[2] then
    redis.call('ZREM', KEYS[1], ARGV[1])
    redis.call('UNLINK', KEYS[3])
end
return { 1 }
