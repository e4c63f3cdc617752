-- Read the messages of other workers. Those up to ARGV[1] have been handled, and are deleted.
--
-- KEYS[1]  {prefix}{workers}:inbox:{worker}
-- KEYS[2]  {prefix}{workers}:announcements
-- ARGV[1]  the id of the last handled entry of the inbox; ARGV[2] of the announcements
-- ARGV[3]  maximum number of entries of each
-- Returns  { entries, entries }, each entry as { id, { "m", message } }

redis.call('XTRIM', KEYS[1], 'MINID', ARGV[1])
return {
  redis.call('XRANGE', KEYS[1], '(' .. ARGV[1], '+', 'COUNT', ARGV[3]),
  redis.call('XRANGE', KEYS[2], '(' .. ARGV[2], '+', 'COUNT', ARGV[3]),
}
