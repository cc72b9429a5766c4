-- Stamps the server's time on agents whose record needs nothing else, and starts their time to live anew.
-- Every other record is left as it is, for heartbeat_slow.lua.
-- KEYS   one per agent
-- ARGV   1: time to live in milliseconds, 0 for none; 2: '1' to stamp offline agents too, which stay offline
-- return per agent 1, or SLOW with nothing changed

local ttl, also_offline, stamp = ARGV[1], ARGV[2] == '1', now()

-- Writes the stamp over one of the same width. Returns false, with nothing changed, where the record has none.
local function stamped_in_place(key, text)
  local status_from, status_to, from, to = plain(text)
  if not status_from or to - from + 1 ~= #stamp then return false end
  if sub(text, status_from, status_to) == 'offline' and not also_offline then return false end
  -- In this order: a script that has written may write on when the server's memory is full.
  if ttl ~= '0' then call('PEXPIRE', key, ttl) else call('PERSIST', key) end
  call('SETRANGE', key, from - 1, stamp)
  return true
end

local records, results = read_all(), {}
for i = 1, #KEYS do
  local record = records[i]
  results[i] = record and stamped_in_place(KEYS[i], record) and 1 or SLOW
end
return results
