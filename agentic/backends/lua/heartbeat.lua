-- Stamps the server's time on agents, turns offline ones available, and starts their time to live anew.
-- KEYS   one per agent
-- ARGV   1: time to live in milliseconds, 0 for none
-- return per agent 1, or ABSENT, CORRUPT or WRONG_TYPE with nothing changed

local ttl, stamp = ARGV[1], now()

-- Writes the stamp alone, over one of the same width: what most heartbeats find. Otherwise false, with nothing changed.
local function stamped_in_place(key, text)
  local status_from, status_to, from, to = plain(text)
  if not status_from or to - from + 1 ~= #stamp or sub(text, status_from, status_to) == 'offline' then return false end
  -- In this order: a script that has written may write on when the server's memory is full.
  if ttl ~= '0' then call('PEXPIRE', key, ttl) else call('PERSIST', key) end
  call('SETRANGE', key, from - 1, stamp)
  return true
end

local function beaten(text)
  local status_from, status_to, from, to = plain(text)
  if status_from then
    local status = sub(text, status_from, status_to)
    if status ~= 'offline' then return sub(text, 1, from - 1) .. stamp .. sub(text, to + 1) end
    return sub(text, 1, status_from - 1) .. 'available","last_heartbeat":"' .. stamp .. sub(text, to + 1)
  end
  local found = fields(text)
  if not found then return nil end
  local status = found.status
  if status and sub(text, status.from, status.to) == '"offline"' then text = set_field(text, 'status', '"available"') end
  return set_field(text, 'last_heartbeat', '"' .. stamp .. '"')
end

local records, results = read_all(), {}
for i = 1, #KEYS do
  local record = records[i]
  if record and stamped_in_place(KEYS[i], record) then
    results[i] = 1
  else
    local patched = record and beaten(record)
    if patched then store(KEYS[i], patched, ttl) end
    results[i] = patched and 1 or record and CORRUPT or missing(KEYS[i])
  end
end
return results
