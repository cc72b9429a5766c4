-- Stamps the server's time on agents whose record needs nothing else, and starts their time to live anew.
-- Every other record is left as it is, for heartbeat_slow.lua.
-- KEYS   one per agent
-- ARGV   1: time to live in milliseconds, 0 for none; 2: '1' to stamp offline agents too, which stay offline
-- return per agent 1, or SLOW with nothing changed, or AGAIN

local ttl, also_offline, stamp = ARGV[1], ARGV[2] == '1', now()

return for_each_record(#KEYS, function(i, record)
  local heartbeat, status, status_end = usual(record or '', KEYS[i])
  if not heartbeat then return SLOW end
  if sub(record, status, status_end) == 'offline' and not also_offline then return SLOW end
  -- In this order: a script that has written may write on when the server's memory is full.
  if ttl ~= '0' then call('PEXPIRE', KEYS[i], ttl) else call('PERSIST', KEYS[i]) end
  call('SETRANGE', KEYS[i], heartbeat - 1, stamp)
  return 1
end)
