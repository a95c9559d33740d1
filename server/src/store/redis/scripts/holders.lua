-- What the scripts share that ask who holds the client.

-- Whether this login holds the client, under the generation it has or the one it had asked for.
local function is_held_by(generation)
    return is_mine and (session.generation == generation or session.asked == generation)
end

-- Whether this life of this node is the former holder.
local function is_me(former)
    return former[1] == node and former[2] == incarnation
end
