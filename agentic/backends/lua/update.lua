-- Changes fields of agents; heartbeat and remaining time to live stay as they are.
-- KEYS   one per agent
-- ARGV   1: the longest record allowed, in bytes; then per agent: how many fields, and per field its name and its new
--        JSON, or '' to leave the field out
-- return per agent the changed record, or ABSENT, CORRUPT, WRONG_TYPE or {TOO_LARGE, size} with nothing changed

local limit, at = tonumber(ARGV[1]), 2

local results = {}
for i = 1, #KEYS do
  local text, outcome = read(KEYS[i])
  local before = text and #text
  local last = at + 2 * tonumber(ARGV[at])
  for name = at + 1, last, 2 do
    if text then
      local json = ARGV[name + 1]
      if json == '' then text = drop_field(text, ARGV[name]) else text = set_field(text, ARGV[name], json) end
    end
  end
  at = last + 1
  if not text then
    outcome = outcome or CORRUPT
  elseif #text > limit and #text > before then
    outcome = {TOO_LARGE, #text}
  else
    redis.call('SET', KEYS[i], text, 'KEEPTTL')
    outcome = text
  end
  results[i] = outcome
end
return results
