package streams

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/redis/rueidis"

	"github.com/tidings-go/tidings/driver"
)

// trimLoop removes finished entries until ctx ends.
func (d *Driver) trimLoop(ctx context.Context) {
	for {
		// Instances look at different times.
		pause(ctx, d.options.TrimInterval/2+time.Duration(rand.Int64N(int64(d.options.TrimInterval))))
		if ctx.Err() != nil {
			return
		}
		_ = d.trim(ctx) // the next time
	}
}

// trim looks at every channel that this driver publishes to or reads.
func (d *Driver) trim(ctx context.Context) error {
	d.mu.Lock()
	var channels []string
	for channel := range d.channels {
		channels = append(channels, channel)
	}
	d.mu.Unlock()
	var errs []error
	for _, channel := range channels {
		if err := d.trimChannel(ctx, channel); err != nil && ctx.Err() == nil {
			errs = append(errs, fmt.Errorf("streams: trim channel %s: %w", channel, err))
		}
	}
	return errors.Join(errs...)
}

// trimChannel removes what is older than the retention and finished by every
// group: the declared ones, and those that nobody declared until their grace is
// over. A declared group that is missing keeps everything.
func (d *Driver) trimChannel(ctx context.Context, channel string) error {
	declared, err := d.client.Do(ctx, d.client.B().Smembers().Key(d.groupsKey(channel)).Build()).AsStrSlice()
	if err != nil {
		return err
	}
	now, err := d.now(ctx)
	if err != nil {
		return err
	}
	shards := make(rueidis.Commands, d.options.Shards)
	for n := range shards {
		shards[n] = d.client.B().XinfoGroups().Key(d.stream(channel, n)).Build()
	}
	var errs []error
	for n, answer := range d.client.DoMulti(ctx, shards...) {
		groups, err := groupsOf(answer)
		if err == nil {
			err = d.trimShard(ctx, channel, d.stream(channel, n), declared, groups, now)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (d *Driver) now(ctx context.Context) (time.Time, error) {
	parts, err := d.client.Do(ctx, d.client.B().Time().Build()).AsIntSlice()
	if err != nil || len(parts) != 2 {
		return time.Time{}, orUnexpected(err)
	}
	return time.Unix(parts[0], parts[1]*1000), nil
}

func (d *Driver) trimShard(ctx context.Context, channel, stream string, declared []string, groups map[string]group, now time.Time) error {
	least := before(now.Add(-d.options.Retention)).next()
	waiting := make(map[string]bool, len(declared))
	for _, name := range declared {
		if _, exists := groups[name]; !exists {
			return nil // it was lost, and begins again at what its owner remembers
		}
		waiting[name] = true
	}
	for name, g := range groups {
		if !waiting[name] {
			over, err := d.unknownOver(ctx, channel, name, now)
			if err != nil {
				return err
			}
			if over {
				continue
			}
		}
		floor := g.delivered.next()
		if g.pending > 0 {
			first, err := d.firstPending(ctx, stream, name)
			if err != nil {
				return err
			}
			if first.compare(floor) < 0 {
				floor = first
			}
		}
		if floor.compare(least) < 0 {
			least = floor
		}
	}
	return d.client.Do(ctx, d.client.B().Xtrim().Key(stream).Minid().Exact().Threshold(least.String()).Build()).Error()
}

// firstPending is the oldest entry that a group has not finished.
func (d *Driver) firstPending(ctx context.Context, stream, name string) (id, error) {
	summary, err := d.client.Do(ctx, d.client.B().Xpending().Key(stream).Group(name).Build()).ToArray()
	if err != nil || len(summary) < 2 {
		return id{}, orUnexpected(err)
	}
	text, err := summary[1].ToString()
	if rueidis.IsRedisNil(err) { // finished meanwhile
		return id{}, nil
	}
	if err != nil {
		return id{}, err
	}
	return parseID(text)
}

// unknownOver reports whether a group that nobody declared has kept entries for as
// long as it may. It is reported when it is first seen.
func (d *Driver) unknownOver(ctx context.Context, channel, name string, now time.Time) (bool, error) {
	key := d.unknownKey(channel)
	results := d.client.DoMulti(ctx,
		d.client.B().Hsetnx().Key(key).Field(name).Value(number(now.UnixMilli())).Build(),
		d.client.B().Hget().Key(key).Field(name).Build())
	if err := results[0].Error(); err != nil {
		return false, err
	}
	seen, err := results[1].AsInt64()
	if err != nil {
		return false, err
	}
	until := time.UnixMilli(seen).Add(d.options.UnknownGroupGrace)
	if d.once("unknown group " + channel + " " + name) {
		d.report(driver.Report{Kind: driver.ReportWarning, Text: fmt.Sprintf(
			"group %s on the streams of channel %s belongs to no subscription: what it has not finished is kept until %s; destroy it, or declare it with SADD %s %s",
			name, channel, until.UTC().Format(time.RFC3339), d.groupsKey(channel), name)})
	}
	return !now.Before(until), nil
}

// report tells every subscription of this driver.
func (d *Driver) report(r driver.Report) {
	d.mu.Lock()
	var sinks []driver.Sink
	for _, c := range d.subscribed {
		sinks = append(sinks, c.sink)
	}
	d.mu.Unlock()
	for _, sink := range sinks {
		sink.Report(r)
	}
}
