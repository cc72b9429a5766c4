-- Marks agents offline, each only if its heartbeat is still the one that was found stale; the remaining time to live stays.
-- A heartbeat that was found in the server's future, whose clock was set back, becomes one of now, to grow old from now on.
-- KEYS   one per agent
-- ARGV   1: time to live in milliseconds, 0 for none; then per agent the JSON of the last_heartbeat that was found, ''
--        where the record had none, and 'stale' or 'future'
-- return per agent 1 where this call marked it, else 0, or AGAIN

local ttl, stamp = tonumber(ARGV[1]), now()

local MARK, RESTAMP = {status = '"offline"'}, {last_heartbeat = '"' .. stamp .. '"'}

return for_each_record(#KEYS, function(i, record)
  local members, named, closing = agent_members(record or '', KEYS[i])
  if not members then return 0 end
  local found = named.last_heartbeat
  if (found and sub(record, found.from, found.to) or '') ~= ARGV[2 * i] then return 0 end
  if text_of(record, named.status) == 'offline' then return 0 end
  local is_future = ARGV[2 * i + 1] == 'future'
  local text = changed(record, members, named, closing, is_future and RESTAMP or MARK)
  if not text then return 0 end
  call('SET', KEYS[i], text, 'KEEPTTL')
  if not is_future then return 1 end
  if ttl > 0 and call('PTTL', KEYS[i]) > ttl then call('PEXPIRE', KEYS[i], ttl) end
  return 0
end)
