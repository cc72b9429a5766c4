-- Stamps the server's time on records that need no other change, and restarts their time to live.
-- Leaves all other records unchanged for heartbeat_slow.lua.
-- KEYS   one per agent
-- ARGV   1: time to live in milliseconds, 0 for none; then per agent the incarnation that sends it, '0' for any, or none for
--        all; then 'offline' to stamp offline agents too, without changing their status
-- return per agent 1, or SLOW with nothing changed, or AGAIN

local also_offline = ARGV[#ARGV] == 'offline' and table.remove(ARGV) ~= nil
local ttl, is_fenced = ARGV[1], #ARGV > 1

-- Cached as text, because each command would convert a number again.
local offsets = {}

local MARK = ',"marked":true}'

return for_each_record(#KEYS, function(key, record, i)
  if not record then return SLOW end
  -- Then drains cannot be looked up either; the mark stays in the store.
  if also_offline and sub(record, -#MARK) == MARK then record = sub(record, 1, -#MARK - 1) .. '}' end
  local heartbeat, status, incarnation = usual(record, key)
  if not heartbeat then return SLOW end
  -- A record without an incarnation was written by another program, which may have dropped the mark of a drain.
  if (status == 'offline' or incarnation == '0') and not also_offline then return SLOW end
  if is_fenced and ARGV[i + 1] ~= incarnation and ARGV[i + 1] ~= '0' then return SLOW end
  local offset = offsets[heartbeat]
  if not offset then
    offset = tostring(heartbeat - 1)
    offsets[heartbeat] = offset
  end
  write_heartbeat(key, offset, stamp, ttl)
  return 1
end)
