-- Prepended to each script that may change more than the stamp of a heartbeat. The last key belongs to the calling registry
-- object, and the last argument is the generation of the call; both are removed from KEYS and ARGV here.

local WRITER, GENERATION = table.remove(KEYS), tonumber(table.remove(ARGV))

-- Returns the latest generation if the registry object has already called with a higher one; the script must then return it
-- and change nothing. Otherwise returns nil, and lower generations are refused from now on. Call this before the first
-- write. `when_full`: also work when the server's memory is full, for scripts that free memory.
local function overtaken(when_full)
  local latest = tonumber(call('GET', WRITER) or 0)
  if latest > GENERATION then return latest end
  if latest < GENERATION then
    if when_full then call('PERSIST', WRITER) end -- After a first write, a script may allocate.
    call('SET', WRITER, GENERATION, 'EX', 86400)
  end
end
