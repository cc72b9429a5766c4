-- Tells why keys that were read had no record; one that has been made since counts as absent.
-- KEYS   one per agent
-- ARGV   none
-- return per agent ABSENT or WRONG_TYPE

local results = {}
for i = 1, #KEYS do
  local kind = call('TYPE', KEYS[i]).ok
  results[i] = (kind == 'none' or kind == 'string') and ABSENT or WRONG_TYPE
end
return results
