package redis

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/rueidis"

	"github.com/tidings-go/tidings/driver"
)

// Claims is a [driver.Claims] in Redis. Make it with [NewClaims]. All methods may
// be called at once.
type Claims struct {
	client    rueidis.Client
	namespace string
}

var (
	_ driver.Claims      = (*Claims)(nil)
	_ driver.ClaimEpochs = (*Claims)(nil)
)

// NewClaims makes a claims store. Its keys are "claims:SUBSCRIPTION:KEY", after the
// namespace and a colon if there is one. The client stays the caller's.
func NewClaims(client rueidis.Client, namespace string) *Claims {
	return &Claims{client: client, namespace: namespace}
}

func (c *Claims) key(r *driver.ClaimRequest) string {
	return prefix(c.namespace) + "claims:" + r.Subscription + ":" + r.Key
}

func prefix(namespace string) string {
	if namespace == "" {
		return ""
	}
	return namespace + ":"
}

// A claim is a hash: owner ("" when it is done), until, digest; crashes and alone,
// which are starts that never finished; started, which is what this claim counts
// as (0 no start, 1 one, 2 one alone); source and epoch. What an owner left behind
// is kept for a month after its lease, so that crashes count.

// claim is the one atomic step.
//
//	KEYS 1 claim    ARGV 1 owner, 2 lease in ms, 3 digest, 4 counting, 5 source, 6 epoch
//
// It returns {state, until in ms, digest, crashes, alone}.
var claim = rueidis.NewLuaScript(`
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local c = redis.call('HMGET', KEYS[1], 'owner', 'until', 'digest', 'crashes', 'alone', 'started', 'source', 'epoch')
local crashes, alone, started = tonumber(c[4] or '0'), tonumber(c[5] or '0'), tonumber(c[6] or '0')
if c[1] then
  if c[1] == '' then return {2, 0, c[3], 0, 0} end
  if c[1] ~= ARGV[1] then
    local older = ARGV[5] ~= '' and c[7] == ARGV[5] and tonumber(c[8]) < tonumber(ARGV[6])
    if tonumber(c[2]) > now and not older then return {3, tonumber(c[2]), '', crashes, alone} end
    if started > 0 then crashes = crashes + 1 end
    if started == 2 then alone = alone + 1 end
    started = 0
    if crashes == 0 then started = 1 end
  end
else
  started = 1
end
if tonumber(ARGV[4]) > 0 then started = tonumber(ARGV[4]) end
local ends = now + tonumber(ARGV[2])
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'until', ends, 'digest', ARGV[3], 'crashes', crashes, 'alone', alone, 'started', started, 'source', ARGV[5], 'epoch', ARGV[6])
redis.call('PEXPIREAT', KEYS[1], ends + 2592000000)
return {1, 0, '', crashes, alone}
`)

// finish marks a claim as done.
//
//	KEYS 1 claim    ARGV 1 owner, 2 keep in ms or 0, 3 digest
var finish = rueidis.NewLuaScript(`
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] or ARGV[1] == '' then return 0 end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'owner', '', 'digest', ARGV[3])
if tonumber(ARGV[2]) > 0 then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 1
`)

// release forgets a claim.
//
//	KEYS 1 claim    ARGV 1 owner
var release = rueidis.NewLuaScript(`
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] or ARGV[1] == '' then return 0 end
return redis.call('DEL', KEYS[1])
`)

// unstart releases a claim that was no start: what is counted stays.
//
//	KEYS 1 claim    ARGV 1 owner
var unstart = rueidis.NewLuaScript(`
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] or ARGV[1] == '' then return 0 end
redis.call('HSET', KEYS[1], 'until', 0, 'started', 0)
return redis.call('PEXPIRE', KEYS[1], 2592000000)
`)

// detach makes a claim one of no source.
//
//	KEYS 1 claim    ARGV 1 owner
var detach = rueidis.NewLuaScript(`
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] or ARGV[1] == '' then return 0 end
return redis.call('HSET', KEYS[1], 'source', '', 'epoch', 0)
`)

// Claim implements [driver.Claims], by Redis's clock.
func (c *Claims) Claim(ctx context.Context, r driver.ClaimRequest) (driver.ClaimAnswer, error) {
	result := claim.Exec(ctx, c.client, []string{c.key(&r)}, []string{r.Owner, milliseconds(r.Lease), strconv.FormatUint(r.Digest, 16),
		strconv.Itoa(int(r.Counting)), r.Source, strconv.FormatInt(r.Epoch, 10)})
	answer, err := result.ToArray()
	if err == nil && len(answer) != 5 {
		err = errUnexpected
	}
	if err != nil {
		return driver.ClaimAnswer{}, fmt.Errorf("redis: claim %s of %s: %w", r.Key, r.Subscription, err)
	}
	state, _ := answer[0].AsInt64()
	until, _ := answer[1].AsInt64()
	text, _ := answer[2].ToString()
	crashes, _ := answer[3].AsInt64()
	alone, _ := answer[4].AsInt64()
	switch driver.ClaimState(state) {
	case driver.ClaimBusy:
		return driver.ClaimAnswer{State: driver.ClaimBusy, Until: time.UnixMilli(until)}, nil
	case driver.ClaimDone:
		digest, err := strconv.ParseUint(text, 16, 64)
		if err != nil {
			return driver.ClaimAnswer{}, fmt.Errorf("redis: claim %s of %s: its digest: %w", r.Key, r.Subscription, err)
		}
		return driver.ClaimAnswer{State: driver.ClaimDone, Digest: digest}, nil
	case driver.ClaimFresh:
		return driver.ClaimAnswer{State: driver.ClaimFresh, Crashes: int(crashes), Alone: int(alone)}, nil
	}
	return driver.ClaimAnswer{}, fmt.Errorf("redis: claim %s of %s: %w: state %d", r.Key, r.Subscription, errUnexpected, state)
}

// Finish implements [driver.Claims].
func (c *Claims) Finish(ctx context.Context, r driver.ClaimRequest) error {
	marked, err := finish.Exec(ctx, c.client, []string{c.key(&r)}, []string{r.Owner, milliseconds(r.Keep), strconv.FormatUint(r.Digest, 16)}).AsInt64()
	if err == nil && marked == 0 {
		err = driver.ErrNotClaimed
	}
	if err != nil {
		return fmt.Errorf("redis: finish %s of %s: %w", r.Key, r.Subscription, err)
	}
	return nil
}

// Release implements [driver.Claims].
func (c *Claims) Release(ctx context.Context, r driver.ClaimRequest) error {
	script := release
	if r.Unstarted {
		script = unstart
	}
	if err := script.Exec(ctx, c.client, []string{c.key(&r)}, []string{r.Owner}).Error(); err != nil {
		return fmt.Errorf("redis: release %s of %s: %w", r.Key, r.Subscription, err)
	}
	return nil
}

// AdvanceClaims implements [driver.ClaimEpochs]. The epochs of a subscription are
// fields of the hash "claimepochs:SUBSCRIPTION".
func (c *Claims) AdvanceClaims(ctx context.Context, subscription, source string) (int64, error) {
	key := prefix(c.namespace) + "claimepochs:" + subscription
	epoch, err := c.client.Do(ctx, c.client.B().Hincrby().Key(key).Field(source).Increment(1).Build()).AsInt64()
	if err != nil {
		return 0, fmt.Errorf("redis: advance the claims of %s %s: %w", subscription, source, err)
	}
	return epoch, nil
}

// DetachClaim implements [driver.ClaimEpochs].
func (c *Claims) DetachClaim(ctx context.Context, r driver.ClaimRequest) error {
	if err := detach.Exec(ctx, c.client, []string{c.key(&r)}, []string{r.Owner}).Error(); err != nil {
		return fmt.Errorf("redis: detach the claim on %s of %s: %w", r.Key, r.Subscription, err)
	}
	return nil
}

// Durable implements [driver.Claims]: instances share the store, and it outlives
// them as far as Redis does.
func (c *Claims) Durable() bool { return true }

// milliseconds rounds up: a duration above 0 is never none.
func milliseconds(d time.Duration) string {
	return strconv.FormatInt(int64((d+time.Millisecond-1)/time.Millisecond), 10)
}
