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
// "dead:{SUBSCRIPTION}:retry" those that are marked, by when they are due; the list
// "dead:{SUBSCRIPTION}:history:KEY" is what happened to it.
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

// The scripts share two lines: the time in microseconds, and how a change is
// remembered.
const now = `
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local function remember(list, state, note)
  redis.call('RPUSH', list, string.format('%.0f', math.floor(now / 1000)) .. ' ' .. state .. ' ' .. note)
end
`

// put stores a letter as open; with once not where that failure is known.
//
//	KEYS 1 letter, 2 all, 3 retry, 4 history    ARGV 1 JSON, 2 key, 3 failed at in ms, 4 listing text, 5 once, 6 note
var put = rueidis.NewLuaScript(now + `
if ARGV[5] == '1' then
  local known = redis.call('ZSCORE', KEYS[2], ARGV[2])
  if known and tonumber(known) >= tonumber(ARGV[3]) then return 0 end
end
redis.call('HSET', KEYS[1], 'letter', ARGV[1], 'listing', ARGV[4], 'state', 'open', 'note', '', 'taken', '0', 'changed', math.floor(now / 1000))
redis.call('HINCRBY', KEYS[1], 'times', 1)
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[2])
redis.call('ZREM', KEYS[3], ARGV[2])
remember(KEYS[4], 'open', ARGV[6])
return 1
`)

// mark moves a letter that is open, or marked and not taken.
//
//	KEYS 1 letter, 2 retry, 3 history    ARGV 1 key, 2 state, 3 note, 4 times, 0 for any
var mark = rueidis.NewLuaScript(now + `
local l = redis.call('HMGET', KEYS[1], 'state', 'taken', 'times')
if l[1] ~= 'open' and not (l[1] == 'retry' and l[2] ~= '1') then return 0 end
if ARGV[4] ~= '0' and ARGV[4] ~= l[3] then return 0 end
redis.call('HSET', KEYS[1], 'state', ARGV[2], 'note', ARGV[3], 'taken', '0', 'changed', math.floor(now / 1000))
if ARGV[2] == 'retry' then
  redis.call('ZADD', KEYS[2], now, ARGV[1])
else
  redis.call('ZREM', KEYS[2], ARGV[1])
end
remember(KEYS[3], ARGV[2], ARGV[3])
return 1
`)

// due lists letters that may be taken.
//
//	KEYS 1 retry    ARGV 1 offset, 2 limit
var due = rueidis.NewLuaScript(now + `
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', ARGV[1], ARGV[2])
`)

// take gives a letter out that is due; its next due time is the lease's end. It
// returns 0 for none, 1, or 2 for one that somebody had before.
//
//	KEYS 1 letter, 2 retry    ARGV 1 key, 2 lease in ms
var take = rueidis.NewLuaScript(now + `
local at = redis.call('ZSCORE', KEYS[2], ARGV[1])
if not at or tonumber(at) > now then return 0 end
local before = redis.call('HGET', KEYS[1], 'taken')
redis.call('ZADD', KEYS[2], now + tonumber(ARGV[2]) * 1000, ARGV[1])
redis.call('HSET', KEYS[1], 'taken', '1')
if before == '1' then return 2 end
return 1
`)

// lease prolongs a lease, or ends it with 0.
//
//	KEYS 1 letter, 2 retry    ARGV 1 key, 2 lease in ms
var lease = rueidis.NewLuaScript(now + `
local l = redis.call('HMGET', KEYS[1], 'state', 'taken')
if l[1] ~= 'retry' or l[2] ~= '1' then return 0 end
if ARGV[2] == '0' then redis.call('HSET', KEYS[1], 'taken', '0') end
redis.call('ZADD', KEYS[2], now + tonumber(ARGV[2]) * 1000, ARGV[1])
return 1
`)

// resolve ends a retry.
//
//	KEYS 1 letter, 2 retry, 3 history    ARGV 1 key
var resolve = rueidis.NewLuaScript(now + `
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return 0 end
if state == 'retry' then
  redis.call('HSET', KEYS[1], 'state', 'resolved', 'changed', math.floor(now / 1000))
  redis.call('ZREM', KEYS[2], ARGV[1])
  remember(KEYS[3], 'resolved', '')
end
return 1
`)

// prune deletes a letter that is in a state since before a time.
//
//	KEYS 1 letter, 2 all, 3 history    ARGV 1 key, 2 state, 3 before in ms
var prune = rueidis.NewLuaScript(`
local l = redis.call('HMGET', KEYS[1], 'state', 'changed')
if l[1] ~= ARGV[2] or tonumber(l[2]) >= tonumber(ARGV[3]) then return 0 end
redis.call('DEL', KEYS[1], KEYS[3])
redis.call('ZREM', KEYS[2], ARGV[1])
return 1
`)

// PutDeadLetter implements [driver.DeadLetters].
func (d *DeadLetters) PutDeadLetter(ctx context.Context, l driver.DeadLetter) error {
	_, err := d.put(ctx, &l, "0")
	return err
}

// CollectDeadLetter implements [driver.DeadLetterStore].
func (d *DeadLetters) CollectDeadLetter(ctx context.Context, l driver.DeadLetter) (fresh bool, err error) {
	return d.put(ctx, &l, "1")
}

func (d *DeadLetters) put(ctx context.Context, l *driver.DeadLetter, once string) (fresh bool, err error) {
	r := record{
		Subscription: l.Subscription, Channel: l.Channel, Type: l.Type, ID: l.ID, AggregateID: l.AggregateID, Reason: l.Reason, Err: l.Err, Stack: l.Stack, Position: l.Position,
		Attempts: l.Attempts, FailedAt: l.FailedAt, Headers: l.Headers, Body: l.Body,
	}
	fail := func(err error) (bool, error) {
		return false, fmt.Errorf("redis: dead letter %s of %s: %w", l.Key(), l.Subscription, err)
	}
	whole, err := json.Marshal(r)
	if err != nil {
		return fail(err)
	}
	r.Body, r.Stack = nil, ""
	listing, err := json.Marshal(r)
	if err != nil {
		return fail(err)
	}
	base := d.base(l.Subscription)
	// The name first: what is stored is then always found.
	if err := d.client.Do(ctx, d.client.B().Sadd().Key(d.subscriptions()).Member(l.Subscription).Build()).Error(); err != nil {
		return fail(err)
	}
	stored, err := put.Exec(ctx, d.client, []string{base + "letter:" + l.Key(), base + "all", base + "retry", base + "history:" + l.Key()},
		[]string{string(whole), l.Key(), strconv.FormatInt(l.FailedAt.UnixMilli(), 10), string(listing), once, l.Reason + ": " + l.Err}).AsInt64()
	if err != nil {
		return fail(err)
	}
	return stored == 1, nil
}

// DeadLetterChanges implements [driver.DeadLetterHistory].
func (d *DeadLetters) DeadLetterChanges(ctx context.Context, subscription, key string) (changes []driver.DeadLetterChange, err error) {
	lines, err := d.client.Do(ctx, d.client.B().Lrange().Key(d.base(subscription)+"history:"+key).Start(0).Stop(-1).Build()).AsStrSlice()
	if err != nil {
		return nil, fmt.Errorf("redis: history of %s of %s: %w", key, subscription, err)
	}
	for _, line := range lines {
		parts := strings.SplitN(line, " ", 3)
		at, err := strconv.ParseInt(parts[0], 10, 64)
		if err != nil || len(parts) < 3 {
			return nil, fmt.Errorf("redis: history of %s of %s: %w", key, subscription, errUnexpected)
		}
		changes = append(changes, driver.DeadLetterChange{At: time.UnixMilli(at).UTC(), State: driver.DeadLetterState(parts[1]), Note: parts[2]})
	}
	return changes, nil
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
		if subscriptions, err = d.known(ctx); err != nil {
			return nil, err
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

// known are the subscriptions that have had letters.
func (d *DeadLetters) known(ctx context.Context) ([]string, error) {
	subscriptions, err := d.client.Do(ctx, d.client.B().Smembers().Key(d.subscriptions()).Build()).AsStrSlice()
	if err != nil {
		return nil, fmt.Errorf("redis: subscriptions with dead letters: %w", err)
	}
	return subscriptions, nil
}

// GroupDeadLetters implements [driver.DeadLetterStore]. It reads every letter that
// may match.
func (d *DeadLetters) GroupDeadLetters(ctx context.Context, filter driver.DeadLetterFilter, limit int) ([]driver.DeadLetterGroup, error) {
	var groups driver.DeadLetterGroups
	for after := ""; ; {
		letters, err := d.ListDeadLetters(ctx, filter, after, page)
		if err != nil {
			return nil, err
		}
		for n := range letters {
			groups.Add(&letters[n])
			after = letters[n].Cursor
		}
		if len(letters) < page {
			return groups.Largest(limit), nil
		}
	}
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
func (d *DeadLetters) MarkDeadLetters(ctx context.Context, subscription string, marks []driver.DeadLetterMark, state driver.DeadLetterState, note string) (marked []string, err error) {
	if state != driver.DeadLetterRetry && state != driver.DeadLetterDiscarded {
		return nil, fmt.Errorf("redis: a letter cannot be marked as %q, only for retry or discarded", state)
	}
	base := d.base(subscription)
	calls := make([]rueidis.LuaExec, len(marks))
	for n, m := range marks {
		calls[n] = rueidis.LuaExec{Keys: []string{base + "letter:" + m.Key, base + "retry", base + "history:" + m.Key}, Args: []string{m.Key, string(state), note, strconv.Itoa(m.Times)}}
	}
	for n, result := range mark.ExecMulti(ctx, d.client, calls...) {
		moved, err := result.AsInt64()
		if err != nil {
			return marked, fmt.Errorf("redis: mark %s of %s: %w", marks[n].Key, subscription, err)
		}
		if moved == 1 {
			marked = append(marked, marks[n].Key)
		}
	}
	return marked, nil
}

// MarkedDeadLetters implements [driver.DeadLetterStore].
func (d *DeadLetters) MarkedDeadLetters(ctx context.Context) (subscriptions []string, err error) {
	known, err := d.known(ctx)
	if err != nil {
		return nil, err
	}
	commands := make(rueidis.Commands, len(known))
	for n, subscription := range known {
		commands[n] = d.client.B().Zcard().Key(d.base(subscription) + "retry").Build()
	}
	for n, result := range d.client.DoMulti(ctx, commands...) {
		count, err := result.AsInt64()
		if err != nil {
			return nil, fmt.Errorf("redis: marked dead letters of %s: %w", known[n], err)
		}
		if count > 0 {
			subscriptions = append(subscriptions, known[n])
		}
	}
	return subscriptions, nil
}

// TakeDeadLetters implements [driver.DeadLetterStore], by Redis's clock.
func (d *DeadLetters) TakeDeadLetters(ctx context.Context, subscription string, owns func(*driver.StoredDeadLetter) bool, limit int, lease time.Duration) (letters []driver.StoredDeadLetter, err error) {
	base := d.base(subscription)
	for offset := 0; len(letters) < limit; {
		keys, err := due.Exec(ctx, d.client, []string{base + "retry"}, []string{strconv.Itoa(offset), strconv.Itoa(page)}).AsStrSlice()
		if err != nil {
			return letters, fmt.Errorf("redis: take dead letters of %s: %w", subscription, err)
		}
		heads, err := d.read(ctx, subscription, keys, "listing")
		if err != nil {
			return letters, err
		}
		var calls []rueidis.LuaExec
		var ours []string
		for n := range heads {
			if len(letters)+len(ours) < limit && (owns == nil || owns(&heads[n])) {
				key := heads[n].Key
				ours = append(ours, key)
				calls = append(calls, rueidis.LuaExec{Keys: []string{base + "letter:" + key, base + "retry"}, Args: []string{key, milliseconds(lease)}})
			}
		}
		var taken []string
		interrupted := make(map[string]bool)
		if len(calls) > 0 {
			for n, result := range take.ExecMulti(ctx, d.client, calls...) {
				given, err := result.AsInt64()
				if err != nil {
					return letters, fmt.Errorf("redis: take %s of %s: %w", ours[n], subscription, err)
				}
				if given > 0 {
					taken = append(taken, ours[n])
					interrupted[ours[n]] = given == 2
				}
			}
		}
		whole, err := d.read(ctx, subscription, taken, "letter")
		if err != nil {
			return letters, err
		}
		for _, l := range whole {
			l.Interrupted = interrupted[l.Key]
			letters = append(letters, l)
		}
		if len(keys) < page {
			break
		}
		offset += len(keys) - len(taken) // those are not due any more
	}
	return letters, nil
}

// LeaseDeadLetters implements [driver.DeadLetterStore].
func (d *DeadLetters) LeaseDeadLetters(ctx context.Context, subscription string, keys []string, until time.Duration) error {
	base := d.base(subscription)
	calls := make([]rueidis.LuaExec, len(keys))
	for n, key := range keys {
		calls[n] = rueidis.LuaExec{Keys: []string{base + "letter:" + key, base + "retry"}, Args: []string{key, milliseconds(until)}}
	}
	for n, result := range lease.ExecMulti(ctx, d.client, calls...) {
		if err := result.Error(); err != nil {
			return fmt.Errorf("redis: lease of %s of %s: %w", keys[n], subscription, err)
		}
	}
	return nil
}

// ResolveDeadLetter implements [driver.DeadLetterStore].
func (d *DeadLetters) ResolveDeadLetter(ctx context.Context, subscription, key string) error {
	base := d.base(subscription)
	found, err := resolve.Exec(ctx, d.client, []string{base + "letter:" + key, base + "retry", base + "history:" + key}, []string{key}).AsInt64()
	if err == nil && found == 0 {
		err = driver.ErrNoDeadLetter
	}
	if err != nil {
		return fmt.Errorf("redis: resolve %s of %s: %w", key, subscription, err)
	}
	return nil
}

// PruneDeadLetters implements [driver.DeadLetterStore]. It reads every letter of
// that state.
func (d *DeadLetters) PruneDeadLetters(ctx context.Context, state driver.DeadLetterState, before time.Time, limit int) (pruned int, err error) {
	if state != driver.DeadLetterResolved && state != driver.DeadLetterDiscarded {
		return 0, fmt.Errorf("redis: %q: %w", state, driver.ErrPrune)
	}
	for after := ""; pruned < limit; {
		letters, err := d.ListDeadLetters(ctx, driver.DeadLetterFilter{State: state}, after, page)
		if err != nil {
			return pruned, err
		}
		for n := range letters {
			l := &letters[n]
			after = l.Cursor
			if pruned >= limit || !l.ChangedAt.Before(before) {
				continue
			}
			base := d.base(l.Subscription)
			gone, err := prune.Exec(ctx, d.client, []string{base + "letter:" + l.Key, base + "all", base + "history:" + l.Key},
				[]string{l.Key, string(state), strconv.FormatInt(before.UnixMilli(), 10)}).AsInt64()
			if err != nil {
				return pruned, fmt.Errorf("redis: prune %s of %s: %w", l.Key, l.Subscription, err)
			}
			pruned += int(gone)
		}
		if len(letters) < page {
			break
		}
	}
	return pruned, nil
}

// Durable implements [driver.DeadLetterStore]: letters outlive the process as far
// as Redis does.
func (d *DeadLetters) Durable() bool { return true }
