package streams

import (
	"context"
	"crypto/sha1" //nolint:gosec // Redis names scripts by it
	"encoding/hex"
	"strconv"

	"github.com/redis/rueidis"
)

// Every script works on the keys of one shard, which share a hash slot: the
// stream itself, and what is named by it in braces. Times are Redis's own.

// acquire takes a shard whose lease is over, or that is the holder's already.
//
//	KEYS 1 owner record    ARGV 1 holder, 2 ttl in ms, 3 an epoch that the new one must be above
//
// It returns {epoch, last settled id}, or an epoch of 0 when another has it.
var acquire = newScript(`
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local o = redis.call('HMGET', KEYS[1], 'holder', 'epoch', 'until', 'settled')
if o[1] and o[1] ~= '' and o[1] ~= ARGV[1] and tonumber(o[3]) > now then return {0, ''} end
local epoch = math.max(tonumber(o[2] or '0'), tonumber(ARGV[3])) + 1
redis.call('HSET', KEYS[1], 'holder', ARGV[1], 'epoch', epoch, 'until', now + tonumber(ARGV[2]))
return {epoch, o[4] or ''}
`)

// renew prolongs a lease that is still the holder's.
//
//	KEYS 1 owner record    ARGV 1 holder, 2 epoch, 3 ttl in ms
var renew = newScript(`
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local o = redis.call('HMGET', KEYS[1], 'holder', 'epoch', 'until')
if o[1] ~= ARGV[1] or o[2] ~= ARGV[2] then return 0 end
if tonumber(o[3]) <= now then return 0 end
redis.call('HSET', KEYS[1], 'until', now + tonumber(ARGV[3]))
return 1
`)

// release gives a lease up.
//
//	KEYS 1 owner record    ARGV 1 holder, 2 epoch
var release = newScript(`
local o = redis.call('HMGET', KEYS[1], 'holder', 'epoch')
if o[1] ~= ARGV[1] or o[2] ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'holder', '', 'until', 0)
return 1
`)

// read fetches for the owner only: entries that are pending after an id, or new
// ones with ">".
//
//	KEYS 1 stream, 2 owner record    ARGV 1 holder, 2 epoch, 3 group, 4 id, 5 count
var read = newScript(`
local o = redis.call('HMGET', KEYS[2], 'holder', 'epoch')
if o[1] ~= ARGV[1] or o[2] ~= ARGV[2] then return redis.error_reply('STALE another instance owns the shard') end
local r = redis.call('XREADGROUP', 'GROUP', ARGV[3], 'owner', 'COUNT', ARGV[5], 'STREAMS', KEYS[1], ARGV[4])
if not r or not r[1] then return {} end
return r[1][2]
`)

// settle acknowledges for the owner only, and records up to where everything is
// finished.
//
//	KEYS 1 stream, 2 owner record    ARGV 1 holder, 2 epoch, 3 group, 4 settled id or "", 5… ids
var settle = newScript(`
local o = redis.call('HMGET', KEYS[2], 'holder', 'epoch')
if o[1] ~= ARGV[1] or o[2] ~= ARGV[2] then return redis.error_reply('STALE another instance owns the shard') end
if ARGV[4] ~= '' then redis.call('HSET', KEYS[2], 'settled', ARGV[4]) end
for i = 5, #ARGV, 500 do
  redis.call('XACK', KEYS[1], ARGV[3], unpack(ARGV, i, math.min(i + 499, #ARGV)))
end
return #ARGV - 4
`)

// add appends entries in order and stops at the first that Redis refuses. Each is
// a number of arguments, then fields and values.
//
//	KEYS 1 stream    ARGV 1… entries
//
// It returns {how many were added, the refusal or ""}.
var add = newScript(`
local added, at = 0, 1
while at <= #ARGV do
  local count = tonumber(ARGV[at])
  local r = redis.pcall('XADD', KEYS[1], '*', unpack(ARGV, at + 1, at + count))
  if type(r) == 'table' and r.err then return {added, r.err} end
  added, at = added + 1, at + count + 1
end
return {added, ''}
`)

// join says that a holder is alive and what it knows, and returns all who are. An
// entry is the holder, a space, and what it knows; a holder has one.
//
//	KEYS 1 members    ARGV 1 holder, 2 ttl in ms, 3 what it knows
var join = newScript(`
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local holder = ARGV[1] .. ' '
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
for _, other in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  if string.sub(other, 1, #holder) == holder and other ~= holder .. ARGV[3] then redis.call('ZREM', KEYS[1], other) end
end
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), holder .. ARGV[3])
return redis.call('ZRANGE', KEYS[1], 0, -1)
`)

// leave takes a holder out.
//
//	KEYS 1 members    ARGV 1 holder
var leave = newScript(`
local holder = ARGV[1] .. ' '
for _, other in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  if string.sub(other, 1, #holder) == holder then redis.call('ZREM', KEYS[1], other) end
end
return 1
`)

// script is a Lua script with the name that Redis has for it.
type script struct {
	*rueidis.Lua
	digest string
}

func newScript(text string) script {
	sum := sha1.Sum([]byte(text)) //nolint:gosec // Redis names scripts by it
	return script{rueidis.NewLuaScript(text), hex.EncodeToString(sum[:])}
}

// call is one run of a script.
type call struct {
	keys      []string
	arguments []string
}

// runAll runs a script with different arguments in one round trip. A server that
// does not know the script yet is given it.
func runAll(ctx context.Context, client rueidis.Client, s script, calls []call) []rueidis.RedisResult {
	commands := make(rueidis.Commands, len(calls))
	for n, c := range calls {
		commands[n] = client.B().Evalsha().Sha1(s.digest).Numkeys(int64(len(c.keys))).Key(c.keys...).Arg(c.arguments...).Build()
	}
	results := client.DoMulti(ctx, commands...)
	for n, result := range results {
		if refusal, ok := rueidis.IsRedisErr(result.Error()); ok && refusal.IsNoScript() {
			results[n] = s.Exec(ctx, client, calls[n].keys, calls[n].arguments)
		}
	}
	return results
}

func number(n int64) string { return strconv.FormatInt(n, 10) }
