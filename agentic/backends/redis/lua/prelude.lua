-- What every script shares. Prepended to each.

local call, find, sub, byte, match, gsub = redis.call, string.find, string.sub, string.byte, string.match, string.gsub

-- Outcomes for one agent, beside 1 for done. SLOW: left for the script that does the rest. AGAIN: not done yet, since
-- this call has done as much as one may; to be sent again.
local ABSENT, CORRUPT, WRONG_TYPE, TOO_LARGE, SLOW, AGAIN = 0, -1, -2, -3, -4, -5

-- Records that are longer are corrupt. No script looks at them: each gets '' in their place, which is corrupt as well.
local MAX_STORED_BYTES = 131072

-- The server does nothing else while a script runs. So a script takes on no further agents once it has looked at MOST_READ
-- bytes of records, or has to examine more than MOST_WORK bytes one by one. It leaves them for another call.
local MOST_READ, MOST_WORK, MOST_AT_ONCE = 524288, 65536, 32
local work = 0 -- Bytes examined one by one so far.

-- Calls `each` with every agent's key, record, false where there is none, and place, and collects what it returns. Agents
-- beyond what one call may do get AGAIN.
local function for_each_record(count, each)
  local results, read, is_full, last, at_once = {}, 0, false, 0, 1
  while last < count do
    local first = last + 1
    last = math.min(last + at_once, count)
    -- Few at first: they may be megabytes long.
    at_once = math.min(2 * at_once, MOST_AT_ONCE)
    is_full = is_full or read >= MOST_READ
    local records = not is_full and call('MGET', unpack(KEYS, first, last))
    for i = first, last do
      local record = records and records[i - first + 1]
      local size = record and #record or 0
      if is_full or work > 0 and work + size > MOST_WORK then
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

-- Every change of a record is made by one of the next three functions, so that what is derived from records can be
-- changed in the same step.

-- Writes a record. `ttl`: its time to live from now on, in milliseconds, '0' for none; nil keeps what is left of it.
local function write(key, record, ttl)
  if not ttl then
    call('SET', key, record, 'KEEPTTL')
  elseif ttl == '0' then
    call('SET', key, record)
  else
    call('PSETEX', key, ttl, record)
  end
end

-- Overwrites the last_heartbeat in a record, from an offset on. Each heartbeat pays for this, so nothing is derived from
-- last_heartbeat. In this order, since a script that has written may write on when the server's memory is full.
local function write_heartbeat(key, offset, stamp, ttl)
  if ttl ~= '0' then call('PEXPIRE', key, ttl) else call('PERSIST', key) end
  call('SETRANGE', key, offset, stamp)
end

-- Removes a record; returns 1 if there was one, else 0.
local function remove(key)
  return call('DEL', key)
end

-- Why a key has no record. PERSIST changes nothing here, but a replica refuses it: one that is out of date must not say
-- that an agent is absent.
local function missing(key)
  if call('TYPE', key).ok ~= 'none' then return WRONG_TYPE end
  call('PERSIST', key)
  return ABSENT
end

-- The server's time as 2026-11-23T08:00:00.123456Z, whose text order is time order.
-- Days to date: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days.
local function now()
  local time = call('TIME')
  local seconds, floor = tonumber(time[1]), math.floor
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
    floor(of_day / 3600), floor(of_day / 60) % 60, of_day % 60, tonumber(time[2]))
end
