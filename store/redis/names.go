package redis

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/redis/rueidis"

	"github.com/tidings-go/tidings/driver"
)

var (
	_ driver.Renamer = (*Claims)(nil)
	_ driver.Keeper  = (*Claims)(nil)
	_ driver.Renamer = (*DeadLetters)(nil)
	_ driver.Keeper  = (*DeadLetters)(nil)
)

// scanCount is how many keys Redis looks at in one step.
const scanCount = 1000

// scan calls visit with keys of a pattern, some at a time, from every server of a
// cluster. A key may come twice.
func scan(ctx context.Context, client rueidis.Client, pattern string, visit func(keys []string) error) error {
	for _, node := range client.Nodes() {
		for cursor := uint64(0); ; {
			entry, err := node.Do(ctx, node.B().Scan().Cursor(cursor).Match(pattern).Count(scanCount).Build()).AsScanEntry()
			if err != nil {
				return err
			}
			if len(entry.Elements) > 0 {
				if err := visit(entry.Elements); err != nil {
					return err
				}
			}
			if cursor = entry.Cursor; cursor == 0 {
				break
			}
		}
	}
	return nil
}

// literal makes a pattern of MATCH of a text.
func literal(text string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(text)
}

// of is what the keys of a subscription begin with.
func (c *Claims) of(subscription string) string {
	return prefix(c.namespace) + "claims:" + subscription + ":"
}

// Rename implements [driver.Renamer]: it looks for the claims with SCAN. A claim
// that the new name has already stays as it is. It does not know who is alive.
func (c *Claims) Rename(ctx context.Context, former string, s driver.Subscription) (moved int64, err error) {
	old := c.of(former)
	err = scan(ctx, c.client, literal(old)+"*", func(keys []string) error {
		reads := make(rueidis.Commands, 0, 3*len(keys))
		for _, key := range keys {
			renamed := c.of(s.Name) + strings.TrimPrefix(key, old)
			reads = append(reads, c.client.B().Hgetall().Key(key).Build(), c.client.B().Pttl().Key(key).Build(), c.client.B().Exists().Key(renamed).Build())
		}
		answers := c.client.DoMulti(ctx, reads...)
		var writes rueidis.Commands
		for n, key := range keys {
			fields, err := answers[3*n].AsStrMap()
			if err != nil {
				return err
			}
			left, err := answers[3*n+1].AsInt64()
			if err != nil {
				return err
			}
			taken, err := answers[3*n+2].AsInt64()
			if err != nil {
				return err
			}
			if taken != 0 || len(fields) == 0 {
				continue
			}
			renamed := c.of(s.Name) + strings.TrimPrefix(key, old)
			set := c.client.B().Hset().Key(renamed).FieldValue()
			for field, value := range fields {
				set = set.FieldValue(field, value)
			}
			writes = append(writes, set.Build())
			if left > 0 {
				writes = append(writes, c.client.B().Pexpire().Key(renamed).Milliseconds(left).Build())
			}
			moved++
		}
		for _, result := range c.client.DoMulti(ctx, writes...) {
			if err := result.Error(); err != nil {
				return err
			}
		}
		// Only now: a claim is in one of the two places at every moment.
		return c.delete(ctx, keys, func(n int) bool { taken, _ := answers[3*n+2].AsInt64(); return taken == 0 })
	})
	if err != nil {
		return moved, fmt.Errorf("redis: claims of %s: take over from %s: %w", s.Name, former, err)
	}
	return moved, nil
}

// delete deletes some of the keys.
func (c *Claims) delete(ctx context.Context, keys []string, wanted func(n int) bool) error {
	var commands rueidis.Commands
	for n, key := range keys {
		if wanted(n) {
			commands = append(commands, c.client.B().Del().Key(key).Build())
		}
	}
	for _, result := range c.client.DoMulti(ctx, commands...) {
		if err := result.Error(); err != nil {
			return err
		}
	}
	return nil
}

// StoredSubscriptions implements [driver.Keeper]. Claims are known by their keys
// alone: without StoredOptions.Count nothing is looked for.
func (c *Claims) StoredSubscriptions(ctx context.Context, options driver.StoredOptions) (all []driver.StoredSubscription, err error) {
	if !options.Count {
		return nil, nil
	}
	counts := make(map[string]map[string]bool)
	begin := prefix(c.namespace) + "claims:"
	err = scan(ctx, c.client, literal(begin+options.Prefix)+"*", func(keys []string) error {
		for _, key := range keys {
			name, rest, _ := strings.Cut(strings.TrimPrefix(key, begin), ":")
			if counts[name] == nil {
				counts[name] = make(map[string]bool)
			}
			counts[name][rest] = true
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("redis: claims: %w", err)
	}
	for name, keys := range counts {
		all = append(all, driver.StoredSubscription{Name: name, Instances: -1, Lag: -1, Parked: -1, DeadLetters: -1, Keys: int64(len(keys))})
	}
	return driver.MergeStored(all), nil
}

// DeleteSubscription implements [driver.Keeper]. It does not know who is alive.
func (c *Claims) DeleteSubscription(ctx context.Context, name string) (deleted []string, err error) {
	count := 0
	err = scan(ctx, c.client, literal(c.of(name))+"*", func(keys []string) error {
		count += len(keys)
		return c.delete(ctx, keys, func(int) bool { return true })
	})
	if err != nil {
		return nil, fmt.Errorf("redis: deleting the claims of %s: %w", name, err)
	}
	if count > 0 {
		deleted = append(deleted, fmt.Sprintf("%d claims", count))
	}
	return deleted, nil
}

// letterKeys are the keys of all letters of a subscription.
func (d *DeadLetters) letterKeys(ctx context.Context, subscription string) ([]string, error) {
	keys, err := d.client.Do(ctx, d.client.B().Zrange().Key(d.base(subscription)+"all").Min("0").Max("-1").Build()).AsStrSlice()
	if err != nil {
		return nil, fmt.Errorf("redis: dead letters of %s: %w", subscription, err)
	}
	return keys, nil
}

// Rename implements [driver.Renamer], a letter at a time, with its history. A
// letter that the new name has already stays where it is. It does not know who is
// alive.
func (d *DeadLetters) Rename(ctx context.Context, former string, s driver.Subscription) (moved int64, err error) {
	keys, err := d.letterKeys(ctx, former)
	if err != nil || len(keys) == 0 {
		return 0, err
	}
	if err := d.client.Do(ctx, d.client.B().Sadd().Key(d.subscriptions()).Member(s.Name).Build()).Error(); err != nil {
		return 0, fmt.Errorf("redis: dead letters of %s: %w", s.Name, err)
	}
	for _, key := range keys {
		done, err := d.renameLetter(ctx, former, s.Name, key)
		if err != nil {
			return moved, fmt.Errorf("redis: dead letter %s of %s: take over from %s: %w", key, s.Name, former, err)
		}
		if done {
			moved++
		}
	}
	return moved, nil
}

func (d *DeadLetters) renameLetter(ctx context.Context, former, name, key string) (bool, error) {
	from, to := d.base(former), d.base(name)
	answers := d.client.DoMulti(ctx,
		d.client.B().Hgetall().Key(from+"letter:"+key).Build(),
		d.client.B().Exists().Key(to+"letter:"+key).Build(),
		d.client.B().Lrange().Key(from+"history:"+key).Start(0).Stop(-1).Build(),
		d.client.B().Zscore().Key(from+"all").Member(key).Build(),
		d.client.B().Zscore().Key(from+"retry").Member(key).Build())
	fields, err1 := answers[0].AsStrMap()
	taken, err2 := answers[1].AsInt64()
	history, err3 := answers[2].AsStrSlice()
	failedAt, err4 := answers[3].ToString()
	due, err5 := answers[4].ToString()
	if rueidis.IsRedisNil(err5) {
		due, err5 = "", nil
	}
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil || taken != 0 || len(fields) == 0 {
		return false, err
	}
	for _, field := range []string{"letter", "listing"} {
		var r record
		if err := json.Unmarshal([]byte(fields[field]), &r); err != nil {
			return false, err
		}
		r.Subscription = name
		text, err := json.Marshal(r)
		if err != nil {
			return false, err
		}
		fields[field] = string(text)
	}
	score, err := strconv.ParseFloat(failedAt, 64)
	if err != nil {
		return false, err
	}
	var writes rueidis.Commands
	if len(history) > 0 {
		writes = append(writes, d.client.B().Del().Key(to+"history:"+key).Build(), d.client.B().Rpush().Key(to+"history:"+key).Element(history...).Build())
	}
	set := d.client.B().Hset().Key(to + "letter:" + key).FieldValue()
	for field, value := range fields {
		set = set.FieldValue(field, value)
	}
	writes = append(writes, d.client.B().Zadd().Key(to+"all").ScoreMember().ScoreMember(score, key).Build())
	if due != "" {
		at, err := strconv.ParseFloat(due, 64)
		if err != nil {
			return false, err
		}
		writes = append(writes, d.client.B().Zadd().Key(to+"retry").ScoreMember().ScoreMember(at, key).Build())
	}
	// The letter itself comes last: until it is there, this is done again.
	writes = append(writes, set.Build())
	for _, result := range d.client.DoMulti(ctx, writes...) {
		if err := result.Error(); err != nil {
			return false, err
		}
	}
	return true, d.deleteLetter(ctx, former, key)
}

func (d *DeadLetters) deleteLetter(ctx context.Context, subscription, key string) error {
	base := d.base(subscription)
	for _, result := range d.client.DoMulti(ctx,
		d.client.B().Zrem().Key(base+"retry").Member(key).Build(),
		d.client.B().Del().Key(base+"letter:"+key, base+"history:"+key).Build(),
		d.client.B().Zrem().Key(base+"all").Member(key).Build()) {
		if err := result.Error(); err != nil {
			return err
		}
	}
	return nil
}

// StoredSubscriptions implements [driver.Keeper].
func (d *DeadLetters) StoredSubscriptions(ctx context.Context, options driver.StoredOptions) (all []driver.StoredSubscription, err error) {
	names, err := d.known(ctx)
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	for _, name := range names {
		if !strings.HasPrefix(name, options.Prefix) {
			continue
		}
		letters, err := d.client.Do(ctx, d.client.B().Zcard().Key(d.base(name)+"all").Build()).AsInt64()
		if err != nil {
			return nil, fmt.Errorf("redis: dead letters of %s: %w", name, err)
		}
		if letters == 0 {
			continue
		}
		s := driver.StoredSubscription{Name: name, Instances: -1, Lag: -1, Parked: -1, DeadLetters: -1, Keys: -1}
		if options.Count {
			s.DeadLetters = letters
		}
		all = append(all, s)
	}
	return all, nil
}

// DeleteSubscription implements [driver.Keeper]. It does not know who is alive.
func (d *DeadLetters) DeleteSubscription(ctx context.Context, name string) (deleted []string, err error) {
	keys, err := d.letterKeys(ctx, name)
	if err != nil {
		return nil, err
	}
	for _, key := range keys {
		if err := d.deleteLetter(ctx, name, key); err != nil {
			return nil, fmt.Errorf("redis: deleting dead letter %s of %s: %w", key, name, err)
		}
	}
	if err := d.client.Do(ctx, d.client.B().Srem().Key(d.subscriptions()).Member(name).Build()).Error(); err != nil {
		return nil, fmt.Errorf("redis: dead letters of %s: %w", name, err)
	}
	if len(keys) > 0 {
		deleted = append(deleted, fmt.Sprintf("%d dead letters", len(keys)))
	}
	return deleted, nil
}
