-- Stamps the server's time on records that need no other change, and restarts their time to live.
-- Leaves all other records unchanged for heartbeat_slow.lua.
-- KEYS   one per agent
-- ARGV   1: time to live in milliseconds, 0 for none; 2: '1' to stamp offline agents too, without changing their status
-- return per agent 1, or SLOW with nothing changed, or AGAIN

local ttl, also_offline, stamp = ARGV[1], ARGV[2] == '1', now()

-- Cached as text, because each command would convert a number again.
local offsets = {}

return for_each_record(#KEYS, function(key, record)
  if not record then return SLOW end
  local heartbeat, status = usual(record, key)
  if not heartbeat or status == 'offline' and not also_offline then return SLOW end
  local offset = offsets[heartbeat]
  if not offset then
    offset = tostring(heartbeat - 1)
    offsets[heartbeat] = offset
  end
  write_heartbeat(key, offset, stamp, ttl)
  return 1
end)
