-- Removes all drains of a family.
-- KEYS   1: a key of the family; 2: the key of the drains
-- ARGV   none
-- return {1}

local refusal = overtaken(true)
if refusal then return refusal end
call('DEL', KEYS[2])
return {1}
