-- Removes agents.
-- KEYS   one per agent
-- ARGV   none
-- return per agent 1, ABSENT, or WRONG_TYPE with nothing changed

local refusal = overtaken(true)
if refusal then return refusal end
local results = {}
for i = 1, #KEYS do
  results[i] = call('TYPE', KEYS[i]).ok == 'string' and remove(KEYS[i]) or missing(KEYS[i])
end
return results
