-- Stamps the server's time on records that need no other change, and restarts their time to live.
-- Leaves all other records unchanged for heartbeat_slow.lua.
-- KEYS   one per agent
-- ARGV   1: time to live in milliseconds, 0 for none; then per agent the incarnation that sends it, '0' for any; then '1' to
--        stamp offline agents too, without changing their status
-- return per agent 1, or SLOW with nothing changed, or AGAIN

local ttl, also_offline = ARGV[1], ARGV[#KEYS + 2] == '1'

-- Cached as text, because each command would convert a number again.
local offsets = {}

return for_each_record(#KEYS, function(key, record, i)
  if not record then return SLOW end
  local heartbeat, status, incarnation = usual(record, key)
  if not heartbeat then return SLOW end
  -- A record without an incarnation was written by another program, which may have dropped the mark of a drain.
  if (status == 'offline' or incarnation == '0') and not also_offline then return SLOW end
  local given = ARGV[i + 1]
  if given ~= '0' and given ~= incarnation then return SLOW end
  local offset = offsets[heartbeat]
  if not offset then
    offset = tostring(heartbeat - 1)
    offsets[heartbeat] = offset
  end
  write_heartbeat(key, offset, stamp, ttl)
  return 1
end)
