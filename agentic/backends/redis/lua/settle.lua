-- Prevents calls of a lower generation from taking effect, and returns the agents that the last call of a sweep marked.
-- KEYS   1: the key to which the registry object's sweeps write the agents they mark
-- ARGV   none
-- return its value, '' if absent

local refusal = overtaken(true)
if refusal then return refusal end
return {call('GET', KEYS[1]) or ''}
