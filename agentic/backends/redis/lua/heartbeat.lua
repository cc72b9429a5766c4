-- Stamps the server's time on records that need no other change, and restarts their time to live.
-- Leaves all other records unchanged for heartbeat_slow.lua.
-- KEYS   one per agent
-- ARGV   1: time to live in milliseconds, 0 for none; 2: the JSON list of the incarnations that send them; absent if each is
--        ANY; then 'offline' to stamp offline agents too, without changing their status
-- return per agent 1, or SLOW with nothing changed, or AGAIN

local also_offline = ARGV[#ARGV] == 'offline' and table.remove(ARGV) ~= nil
local ttl, incarnations = ARGV[1], ARGV[2]

-- Cached as text, because each command would convert a number again.
local offsets = {}

local MARK = ',"marked":true}'

return for_each_record(#KEYS, function(key, record, i)
  if not record then return SLOW end
  -- Then drains cannot be looked up either; the mark stays in the store.
  if also_offline and sub(record, -#MARK) == MARK then record = sub(record, 1, -#MARK - 1) .. '}' end
  local heartbeat, status, is_started = usual(record, key)
  if not heartbeat then return SLOW end
  -- A record without an incarnation was written by another program, which may have dropped the mark of a drain.
  if (status == 'offline' or not is_started) and not also_offline then return SLOW end
  if incarnations then
    local given = listed(incarnations, i)
    if given ~= '0' and not (is_started and given == sub(record, -17, -2)) then return SLOW end
  end
  local offset = offsets[heartbeat]
  if not offset then
    offset = tostring(heartbeat - 1)
    offsets[heartbeat] = offset
  end
  write_heartbeat(key, offset, stamp, ttl)
  return 1
end)
