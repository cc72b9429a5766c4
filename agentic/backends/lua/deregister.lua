-- Removes agents.
-- KEYS   one per agent
-- ARGV   none
-- return per agent 1, or ABSENT, or WRONG_TYPE with nothing changed

local results = {}
for i = 1, #KEYS do
  local kind = call('TYPE', KEYS[i]).ok
  if kind == 'string' then
    results[i] = call('DEL', KEYS[i])
  else
    results[i] = kind == 'none' and ABSENT or WRONG_TYPE
  end
end
return results
