-- Makes sure that no call of a lower generation runs any more, and returns what the last sweep's call has marked.
-- KEYS   1: where the registry object's sweeps write what they mark
-- ARGV   none
-- return what it holds, '' for nothing

local refusal = overtaken(true)
if refusal then return refusal end
return {call('GET', KEYS[1]) or ''}
