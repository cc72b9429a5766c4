-- Shared by all scripts; prepended to each.

local call, find, sub, byte, match, gsub = redis.call, string.find, string.sub, string.byte, string.match, string.gsub

-- Outcomes for one agent; 1 means done. SLOW: needs the slow script. AGAIN: not done, because the call reached its limits;
-- send again. REPLACED: a later start of the agent is stored. AHEAD: the incarnation is too far ahead of the server's clock.
local ABSENT, CORRUPT, WRONG_TYPE, TOO_LARGE, SLOW, AGAIN, REPLACED, AHEAD = 0, -1, -2, -3, -4, -5, -6, -7

-- Longer records are corrupt. Scripts do not read them: they get '' instead, which is corrupt too.
local MAX_STORED_BYTES = 131072

-- A running script blocks the server. So a script stops once it has read MAX_READ_BYTES of records, or might parse more
-- than MAX_PARSED_BYTES; the remaining agents need another call.
local MAX_READ_BYTES, MAX_PARSED_BYTES, MAX_KEYS_PER_READ = 524288, 65536, 32
local parsed_bytes = 0 -- Bytes parsed so far.

-- Calls `each` with every agent's key, record (false if absent) and index, and collects the results. Agents beyond the
-- limits of one call get AGAIN.
local function for_each_record(count, each)
  local results, read, is_full, last, at_once = {}, 0, false, 0, 1
  while last < count do
    local first = last + 1
    last = math.min(last + at_once, count)
    -- Few at first, because records may be megabytes long.
    at_once = math.min(2 * at_once, MAX_KEYS_PER_READ)
    is_full = is_full or read >= MAX_READ_BYTES
    local records = not is_full and call('MGET', unpack(KEYS, first, last))
    for i = first, last do
      local record = records and records[i - first + 1]
      local size = record and #record or 0
      if is_full or parsed_bytes > 0 and parsed_bytes + size > MAX_PARSED_BYTES then
        is_full, results[i] = true, AGAIN
      else
        if size > MAX_STORED_BYTES then record = '' end
        read = read + size
        results[i] = each(KEYS[i], record, i)
      end
    end
  end
  return results
end

-- Records are changed only by the next three functions, so that derived data can be updated in the same step.

-- Writes a record. `ttl`: its new time to live in milliseconds, '0' for none; nil keeps the remaining time.
local function write(key, record, ttl)
  if not ttl then
    call('SET', key, record, 'KEEPTTL')
  elseif ttl == '0' then
    call('SET', key, record)
  else
    call('PSETEX', key, ttl, record)
  end
end

-- Overwrites last_heartbeat at an offset of a record. Hot path: derive no data from last_heartbeat. The order matters:
-- after its first write, a script may also allocate when the server's memory is full.
local function write_heartbeat(key, offset, stamp, ttl)
  if ttl ~= '0' then call('PEXPIRE', key, ttl) else call('PERSIST', key) end
  call('SETRANGE', key, offset, stamp)
end

-- Removes a record; returns 1 if there was one, else 0.
local function remove(key)
  return call('DEL', key)
end

-- Returns the outcome for a key without a record. PERSIST changes nothing here, but fails on a replica, which may be out of
-- date and must not report an agent as absent.
local function missing(key)
  if call('TYPE', key).ok ~= 'none' then return WRONG_TYPE end
  call('PERSIST', key)
  return ABSENT
end

-- Returns an instant as 2026-11-23T08:00:00.123456Z; the text order is the time order. The year must be below 10000.
-- Days to date: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days.
local function instant(seconds, microseconds)
  local floor = math.floor
  local days = floor(seconds / 86400)
  local of_day = seconds - days * 86400
  local shifted = days + 719468
  local era = floor(shifted / 146097)
  local of_era = shifted - era * 146097
  local year_of_era = floor((of_era - floor(of_era / 1460) + floor(of_era / 36524) - floor(of_era / 146096)) / 365)
  local of_year = of_era - (365 * year_of_era + floor(year_of_era / 4) - floor(year_of_era / 100))
  local march_month = floor((5 * of_year + 2) / 153)
  local month = march_month < 10 and march_month + 3 or march_month - 9
  return string.format('%04d-%02d-%02dT%02d:%02d:%02d.%06dZ',
    year_of_era + era * 400 + (month <= 2 and 1 or 0), month, of_year - floor((153 * march_month + 2) / 5) + 1,
    floor(of_day / 3600), floor(of_day / 60) % 60, of_day % 60, microseconds)
end

-- Returns the server's time as `instant` does, and in microseconds since 1970.
local function now()
  local time = call('TIME')
  local seconds, microseconds = tonumber(time[1]), tonumber(time[2])
  return instant(seconds, microseconds), seconds * 1000000 + microseconds
end
