package redis

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"

	"github.com/tidings-go/tidings/driver"
)

// errUnexpected says that Redis answered in a form that nothing here wrote.
var errUnexpected = errors.New("an answer of another form")

// errCursor says that a cursor came from no listing.
var errCursor = errors.New("it comes from no listing")

// DeadLetters is a [driver.DeadLetterStore] in Redis. Make it with
// [NewDeadLetters]. All methods may be called at once.
//
// A letter is a hash "dead:{SUBSCRIPTION}:letter:KEY", with its JSON in the field
// letter; "dead:{SUBSCRIPTION}:all" orders them by their last failure, and
// "dead:{SUBSCRIPTION}:retry" those that are marked, by when they are due.
type DeadLetters struct {
	client    rueidis.Client
	namespace string
}

var _ driver.DeadLetterStore = (*DeadLetters)(nil)

// NewDeadLetters makes a store. Its keys begin with the namespace and a colon if
// there is one. The client stays the caller's.
func NewDeadLetters(client rueidis.Client, namespace string) *DeadLetters {
	return &DeadLetters{client: client, namespace: namespace}
}

// base is what the keys of a subscription begin with; the braces keep them in one
// slot.
func (d *DeadLetters) base(subscription string) string {
	return "{" + prefix(d.namespace) + "dead:" + subscription + "}:"
}

func (d *DeadLetters) subscriptions() string { return prefix(d.namespace) + "dead:subscriptions" }

// record is a letter as it is stored. Bytes are base64 in JSON.
type record struct {
	Subscription, Channel, Type, ID, AggregateID, Reason, Err, Stack, Position string

	Attempts int
	FailedAt time.Time
	Headers  driver.Headers
	Body     []byte
}

// put stores a letter as open.
//
//	KEYS 1 letter, 2 all, 3 retry    ARGV 1 JSON, 2 key, 3 failed at in ms, 4 listing text
var put = rueidis.NewLuaScript(`
local t = redis.call('TIME')
redis.call('HSET', KEYS[1], 'letter', ARGV[1], 'listing', ARGV[4], 'state', 'open', 'note', '', 'changed', t[1] * 1000 + math.floor(t[2] / 1000))
redis.call('HINCRBY', KEYS[1], 'times', 1)
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[2])
redis.call('ZREM', KEYS[3], ARGV[2])
return 1
`)

// mark moves a letter that is open, or marked and not taken.
//
//	KEYS 1 letter, 2 retry    ARGV 1 key, 2 state, 3 note
var mark = rueidis.NewLuaScript(`
local l = redis.call('HMGET', KEYS[1], 'state', 'taken')
if l[1] ~= 'open' and not (l[1] == 'retry' and l[2] ~= '1') then return 0 end
local t = redis.call('TIME')
redis.call('HSET', KEYS[1], 'state', ARGV[2], 'note', ARGV[3], 'taken', '0', 'changed', t[1] * 1000 + math.floor(t[2] / 1000))
if ARGV[2] == 'retry' then
  redis.call('ZADD', KEYS[2], t[1] * 1000000 + t[2], ARGV[1])
else
  redis.call('ZREM', KEYS[2], ARGV[1])
end
return 1
`)

// take gives out letters that are due; their next due time is the lease's end.
//
//	KEYS 1 retry    ARGV 1 limit, 2 lease in ms, 3 what the keys of letters begin with
var take = rueidis.NewLuaScript(`
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
for _, key in ipairs(due) do
  redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]) * 1000, key)
  redis.call('HSET', ARGV[3] .. key, 'taken', '1')
end
return due
`)

// resolve ends a retry.
//
//	KEYS 1 letter, 2 retry    ARGV 1 key
var resolve = rueidis.NewLuaScript(`
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return 0 end
if state == 'retry' then
  local t = redis.call('TIME')
  redis.call('HSET', KEYS[1], 'state', 'resolved', 'changed', t[1] * 1000 + math.floor(t[2] / 1000))
  redis.call('ZREM', KEYS[2], ARGV[1])
end
return 1
`)

// PutDeadLetter implements [driver.DeadLetters].
func (d *DeadLetters) PutDeadLetter(ctx context.Context, l driver.DeadLetter) error {
	r := record{
		Subscription: l.Subscription, Channel: l.Channel, Type: l.Type, ID: l.ID, AggregateID: l.AggregateID, Reason: l.Reason, Err: l.Err, Stack: l.Stack, Position: l.Position,
		Attempts: l.Attempts, FailedAt: l.FailedAt, Headers: l.Headers, Body: l.Body,
	}
	whole, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("redis: dead letter %s of %s: %w", l.Key(), l.Subscription, err)
	}
	r.Body, r.Stack = nil, ""
	listing, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("redis: dead letter %s of %s: %w", l.Key(), l.Subscription, err)
	}
	base := d.base(l.Subscription)
	// The name first: what is stored is then always found.
	err = d.client.Do(ctx, d.client.B().Sadd().Key(d.subscriptions()).Member(l.Subscription).Build()).Error()
	if err == nil {
		err = put.Exec(ctx, d.client, []string{base + "letter:" + l.Key(), base + "all", base + "retry"},
			[]string{string(whole), l.Key(), strconv.FormatInt(l.FailedAt.UnixMilli(), 10), string(listing)}).Error()
	}
	if err != nil {
		return fmt.Errorf("redis: dead letter %s of %s: %w", l.Key(), l.Subscription, err)
	}
	return nil
}

// read returns letters whole, or as a listing has them. Those that are not there
// are left out.
func (d *DeadLetters) read(ctx context.Context, subscription string, keys []string, field string) ([]driver.StoredDeadLetter, error) {
	commands := make(rueidis.Commands, len(keys))
	for n, key := range keys {
		commands[n] = d.client.B().Hmget().Key(d.base(subscription)+"letter:"+key).Field(field, "state", "note", "changed", "times").Build()
	}
	var letters []driver.StoredDeadLetter
	for n, result := range d.client.DoMulti(ctx, commands...) {
		values, err := result.AsStrSlice()
		if err != nil {
			return nil, fmt.Errorf("redis: dead letter %s of %s: %w", keys[n], subscription, err)
		}
		if len(values) != 5 || values[0] == "" {
			continue
		}
		var r record
		if err := json.Unmarshal([]byte(values[0]), &r); err != nil {
			return nil, fmt.Errorf("redis: dead letter %s of %s: %w", keys[n], subscription, err)
		}
		changed, err1 := strconv.ParseInt(values[3], 10, 64)
		times, err2 := strconv.Atoi(values[4])
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("redis: dead letter %s of %s: %w", keys[n], subscription, err)
		}
		letters = append(letters, driver.StoredDeadLetter{
			DeadLetter: driver.DeadLetter{
				Subscription: r.Subscription, Channel: r.Channel, Type: r.Type, ID: r.ID, AggregateID: r.AggregateID, Reason: r.Reason, Err: r.Err, Stack: r.Stack, Position: r.Position,
				Attempts: r.Attempts, FailedAt: r.FailedAt, Headers: r.Headers, Body: r.Body,
			},
			Key: keys[n], State: driver.DeadLetterState(values[1]), Note: values[2], ChangedAt: time.UnixMilli(changed).UTC(), Times: times,
			Cursor: cursor(r.FailedAt.UnixMilli(), subscription, keys[n]),
		})
	}
	return letters, nil
}

// cursor is the place of a letter in a listing of all.
func cursor(failedAt int64, subscription, key string) string {
	return fmt.Sprintf("%016d %s %s", failedAt, subscription, key)
}

// page is how many letters of a subscription are read at once.
const page = 200

// ListDeadLetters implements [driver.DeadLetterStore]. What is filtered out is read
// too, by what Redis does not order by.
func (d *DeadLetters) ListDeadLetters(ctx context.Context, filter driver.DeadLetterFilter, after string, limit int) ([]driver.StoredDeadLetter, error) {
	most := "+inf"
	if after != "" {
		at, _, found := strings.Cut(after, " ")
		if _, err := strconv.ParseInt(at, 10, 64); err != nil || !found {
			return nil, fmt.Errorf("redis: cursor %q: %w", after, errCursor)
		}
		most = at
	}
	subscriptions := []string{filter.Subscription}
	if filter.Subscription == "" {
		var err error
		if subscriptions, err = d.client.Do(ctx, d.client.B().Smembers().Key(d.subscriptions()).Build()).AsStrSlice(); err != nil {
			return nil, fmt.Errorf("redis: list dead letters: %w", err)
		}
	}
	var found []driver.StoredDeadLetter
	for _, subscription := range subscriptions {
		some, err := d.list(ctx, subscription, filter, most, after, limit)
		if err != nil {
			return nil, err
		}
		found = append(found, some...)
	}
	slices.SortFunc(found, func(a, b driver.StoredDeadLetter) int { return strings.Compare(b.Cursor, a.Cursor) })
	return found[:min(limit, len(found))], nil
}

func (d *DeadLetters) list(ctx context.Context, subscription string, filter driver.DeadLetterFilter, most, after string, limit int) (found []driver.StoredDeadLetter, err error) {
	least := "-inf"
	if !filter.Since.IsZero() {
		least = strconv.FormatInt(filter.Since.UnixMilli(), 10)
	}
	for at := int64(0); len(found) < limit; at += page {
		command := d.client.B().Zrevrangebyscore().Key(d.base(subscription)+"all").Max(most).Min(least).Limit(at, page).Build()
		keys, err := d.client.Do(ctx, command).AsStrSlice()
		if err != nil {
			return nil, fmt.Errorf("redis: list dead letters of %s: %w", subscription, err)
		}
		letters, err := d.read(ctx, subscription, keys, "listing")
		if err != nil {
			return nil, err
		}
		for n := range letters {
			if filter.Match(&letters[n]) && (after == "" || letters[n].Cursor < after) {
				found = append(found, letters[n])
			}
		}
		if len(keys) < page {
			break
		}
	}
	return found, nil
}

// GetDeadLetter implements [driver.DeadLetterStore].
func (d *DeadLetters) GetDeadLetter(ctx context.Context, subscription, key string) (driver.StoredDeadLetter, error) {
	letters, err := d.read(ctx, subscription, []string{key}, "letter")
	if err == nil && len(letters) == 0 {
		err = fmt.Errorf("redis: %s of %s: %w", key, subscription, driver.ErrNoDeadLetter)
	}
	if err != nil {
		return driver.StoredDeadLetter{}, err
	}
	return letters[0], nil
}

// MarkDeadLetters implements [driver.DeadLetterStore].
func (d *DeadLetters) MarkDeadLetters(ctx context.Context, subscription string, keys []string, state driver.DeadLetterState, note string) (int, error) {
	if state != driver.DeadLetterRetry && state != driver.DeadLetterDiscarded {
		return 0, fmt.Errorf("redis: a letter cannot be marked as %q, only for retry or discarded", state)
	}
	base := d.base(subscription)
	calls := make([]rueidis.LuaExec, len(keys))
	for n, key := range keys {
		calls[n] = rueidis.LuaExec{Keys: []string{base + "letter:" + key, base + "retry"}, Args: []string{key, string(state), note}}
	}
	marked := 0
	for n, result := range mark.ExecMulti(ctx, d.client, calls...) {
		moved, err := result.AsInt64()
		if err != nil {
			return marked, fmt.Errorf("redis: mark %s of %s: %w", keys[n], subscription, err)
		}
		marked += int(moved)
	}
	return marked, nil
}

// TakeDeadLetters implements [driver.DeadLetterStore], by Redis's clock.
func (d *DeadLetters) TakeDeadLetters(ctx context.Context, subscription string, limit int, lease time.Duration) ([]driver.StoredDeadLetter, error) {
	if limit <= 0 {
		return nil, nil
	}
	base := d.base(subscription)
	keys, err := take.Exec(ctx, d.client, []string{base + "retry"}, []string{strconv.Itoa(limit), milliseconds(lease), base + "letter:"}).AsStrSlice()
	if err != nil {
		return nil, fmt.Errorf("redis: take dead letters of %s: %w", subscription, err)
	}
	return d.read(ctx, subscription, keys, "letter")
}

// ResolveDeadLetter implements [driver.DeadLetterStore].
func (d *DeadLetters) ResolveDeadLetter(ctx context.Context, subscription, key string) error {
	base := d.base(subscription)
	found, err := resolve.Exec(ctx, d.client, []string{base + "letter:" + key, base + "retry"}, []string{key}).AsInt64()
	if err == nil && found == 0 {
		err = driver.ErrNoDeadLetter
	}
	if err != nil {
		return fmt.Errorf("redis: resolve %s of %s: %w", key, subscription, err)
	}
	return nil
}

// Durable implements [driver.DeadLetterStore]: letters outlive the process as far
// as Redis does.
func (d *DeadLetters) Durable() bool { return true }
