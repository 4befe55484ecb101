package streams

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/redis/rueidis"

	"github.com/tidings-go/tidings/driver"
)

var (
	_ driver.Keeper  = (*Driver)(nil)
	_ driver.Renamer = (*Driver)(nil)
)

// StoredSubscriptions implements [driver.Keeper]: the groups on the streams of
// this namespace, and those that were declared and are missing. Without
// StoredOptions.Channels it looks for channels with SCAN. Dead letters are the entries of their streams.
func (d *Driver) StoredSubscriptions(ctx context.Context, options driver.StoredOptions) ([]driver.StoredSubscription, error) {
	if !d.calls.Enter() {
		return nil, errClosed
	}
	defer d.calls.Leave()
	return d.stored(ctx, options)
}

func (d *Driver) stored(ctx context.Context, options driver.StoredOptions) ([]driver.StoredSubscription, error) {
	channels, err := d.storedChannels(ctx, options.Channels)
	if err != nil {
		return nil, err
	}
	found := make(map[string]*driver.StoredSubscription)
	get := func(name string) *driver.StoredSubscription {
		if found[name] == nil {
			found[name] = &driver.StoredSubscription{Name: name, Instances: -1, Lag: -1, Parked: -1, DeadLetters: -1, Keys: -1}
		}
		return found[name]
	}
	for _, channel := range slices.Sorted(maps.Keys(channels)) {
		declared, err := d.client.Do(ctx, d.client.B().Smembers().Key(d.groupsKey(channel)).Build()).AsStrSlice()
		if err != nil {
			return nil, fmt.Errorf("streams: groups of channel %s: %w", channel, err)
		}
		for _, name := range declared {
			if strings.HasPrefix(name, options.Prefix) {
				get(name)
			}
		}
		for n := range channels[channel] {
			if err := d.storedGroups(ctx, d.stream(channel, n), options.Prefix, get); err != nil {
				return nil, err
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(found)) {
		s := found[name]
		alive, err := d.aliveAs(ctx, name)
		if err != nil {
			return nil, err
		}
		s.Instances = int(alive)
		if !options.Count {
			continue
		}
		s.DeadLetters = 0
		for channel := range channels {
			n, err := d.client.Do(ctx, d.client.B().Xlen().Key(d.DeadLetterName(channel, name)).Build()).AsInt64()
			if err != nil {
				return nil, fmt.Errorf("streams: dead letters of %s: %w", name, err)
			}
			s.DeadLetters += n
		}
	}
	all := make([]driver.StoredSubscription, 0, len(found))
	for _, name := range slices.Sorted(maps.Keys(found)) {
		all = append(all, *found[name])
	}
	return all, nil
}

// storedGroups adds up what the groups of one stream have.
func (d *Driver) storedGroups(ctx context.Context, stream, prefix string, get func(name string) *driver.StoredSubscription) error {
	list, err := d.client.Do(ctx, d.client.B().XinfoGroups().Key(stream).Build()).ToArray()
	if err != nil && !missingKey(err) {
		return fmt.Errorf("streams: groups of %s: %w", stream, err)
	}
	for n := range list {
		about, err := list[n].AsMap()
		if err != nil {
			return fmt.Errorf("streams: groups of %s: %w", stream, err)
		}
		nameValue := about["name"]
		name, err := nameValue.ToString()
		if err != nil {
			return fmt.Errorf("streams: groups of %s: %w", stream, err)
		}
		if !strings.HasPrefix(name, prefix) {
			continue
		}
		lag, err := d.lagOf(ctx, stream, about)
		if err != nil {
			return fmt.Errorf("streams: group %s of %s: %w", name, stream, err)
		}
		s := get(name)
		s.Lag = max(s.Lag, 0) + lag
		lastValue := about["last-delivered-id"]
		if text, err := lastValue.ToString(); err == nil {
			if last, err := parseID(text); err == nil && last.time > 0 {
				s.Position = max(s.Position, "delivered until "+last.at().Format(time.RFC3339))
			}
		}
	}
	return nil
}

// DeleteSubscription implements [driver.Keeper]: the groups, what their owners
// recorded, and the streams of dead letters.
func (d *Driver) DeleteSubscription(ctx context.Context, name string) (deleted []string, err error) {
	if !d.calls.Enter() {
		return nil, errClosed
	}
	defer d.calls.Leave()
	alive, err := d.aliveAs(ctx, name)
	if err != nil {
		return nil, err
	}
	if alive > 0 {
		return nil, fmt.Errorf("streams: subscription %s has %d instances: %w", name, alive, driver.ErrInUse)
	}
	channels, err := d.storedChannels(ctx, nil)
	if err != nil {
		return nil, err
	}
	for _, channel := range slices.Sorted(maps.Keys(channels)) {
		// Undeclared first: nothing then makes up for a group that is gone.
		commands := rueidis.Commands{
			d.client.B().Srem().Key(d.groupsKey(channel)).Member(name).Build(),
			d.client.B().Hdel().Key(d.unknownKey(channel)).Field(name).Build(),
			d.client.B().Del().Key(d.DeadLetterName(channel, name)).Build(),
		}
		what := []string{"declaration for channel " + channel, "grace of channel " + channel, "dead letters " + d.DeadLetterName(channel, name)}
		for n := range channels[channel] {
			stream := d.stream(channel, n)
			commands = append(commands, d.client.B().XgroupDestroy().Key(stream).Group(name).Build(), d.client.B().Del().Key(ownerKey(stream, name)).Build())
			what = append(what, "group on "+stream, "owner's record of "+stream)
		}
		for n, result := range d.client.DoMulti(ctx, commands...) {
			changed, err := result.AsInt64()
			if err != nil && !missingKey(err) && !streamMissing(err) {
				return deleted, fmt.Errorf("streams: deleting the %s of %s: %w", what[n], name, err)
			}
			if changed > 0 {
				deleted = append(deleted, what[n])
			}
		}
	}
	record, err := d.client.Do(ctx, d.client.B().Del().Key(d.typesKey(name)).Build()).AsInt64()
	if err != nil {
		return deleted, fmt.Errorf("streams: deleting what %s handles: %w", name, err)
	}
	if record > 0 {
		deleted = append(deleted, "record of what it handles")
	}
	if err := d.client.Do(ctx, d.client.B().Del().Key(d.membersKey(name)).Build()).Error(); err != nil {
		return deleted, fmt.Errorf("streams: deleting the instances of %s: %w", name, err)
	}
	return deleted, nil
}

// Rename implements [driver.Renamer]: on each shard the new group begins at the
// oldest entry that the former one had not finished; then the former one is
// destroyed, so that it keeps nothing from being trimmed. Its owner's record
// stays: a deployment that is taken back goes on there. That is done on every
// channel that a release handled under the former name, also where this one does
// not. The number is that of shards.
func (d *Driver) Rename(ctx context.Context, former string, s driver.Subscription) (moved int64, err error) {
	if !d.calls.Enter() {
		return 0, errClosed
	}
	defer d.calls.Leave()
	declared, err := d.declared(ctx, former)
	if err != nil {
		return 0, err
	}
	shards := make(map[string]int) // by channel
	for _, one := range declared {
		if shards[one.Channel], err = d.recordedShards(ctx, one.Channel); err != nil {
			return 0, err
		}
	}
	for _, channel := range s.Channels {
		if err := d.prepare(ctx, channel); err != nil {
			return 0, err
		}
		shards[channel] = d.options.Shards
	}
	for _, channel := range slices.Sorted(maps.Keys(shards)) {
		done, err := d.renameChannel(ctx, channel, shards[channel], former, s.Name)
		moved += done
		if err != nil {
			return moved, err
		}
	}
	return moved, d.renameDeclared(ctx, former, s.Name, declared, moved > 0)
}

// renameChannel moves the position on one channel.
func (d *Driver) renameChannel(ctx context.Context, channel string, shards int, former, name string) (moved int64, err error) {
	left := false
	for n := range shards {
		done, stays, err := d.renameShard(ctx, d.stream(channel, n), former, name)
		if err != nil {
			return moved, fmt.Errorf("streams: subscription %s: taking over from %s: %w", name, former, err)
		}
		if done {
			moved++
		}
		left = left || stays
	}
	if left {
		return moved, nil // both have a position of their own: it is listed as nobody's
	}
	declared, err := d.client.Do(ctx, d.client.B().Sismember().Key(d.groupsKey(channel)).Member(former).Build()).AsInt64()
	if err != nil {
		return moved, fmt.Errorf("streams: groups of channel %s: %w", channel, err)
	}
	if declared == 0 {
		return moved, nil
	}
	if err := d.declareGroup(ctx, channel, name); err != nil {
		return moved, err
	}
	if err := d.client.Do(ctx, d.client.B().Srem().Key(d.groupsKey(channel)).Member(former).Build()).Error(); err != nil {
		return moved, fmt.Errorf("streams: undeclaring group %s of channel %s: %w", former, channel, err)
	}
	// Best effort: on a cluster the two may lie on different servers. What
	// stays is listed under the former name.
	_ = d.client.Do(ctx, d.client.B().Arbitrary("RENAMENX").Args(d.DeadLetterName(channel, former), d.DeadLetterName(channel, name)).Build()).Error()
	return moved, nil
}

// renameShard moves the position on one stream. stays says that the former group
// is there still, because the new one has a position of its own.
func (d *Driver) renameShard(ctx context.Context, stream, former, name string) (done, stays bool, err error) {
	groups, err := groupsOf(d.client.Do(ctx, d.client.B().XinfoGroups().Key(stream).Build()))
	if err != nil {
		return false, false, err
	}
	old, has := groups[former]
	if _, taken := groups[name]; taken {
		return false, has, nil
	}
	start := old.delivered
	switch {
	case !has: // Redis may have lost it
		text, err := d.client.Do(ctx, d.client.B().Hget().Key(ownerKey(stream, former)).Field("settled").Build()).ToString()
		if rueidis.IsRedisNil(err) {
			return false, false, nil
		}
		if err != nil {
			return false, false, err
		}
		if start, err = parseID(text); err != nil {
			return false, false, fmt.Errorf("the owner's record of %s: %w", stream, err)
		}
	case old.pending > 0:
		first, err := d.firstPending(ctx, stream, former)
		if err != nil {
			return false, false, err
		}
		if first != (id{}) && first.compare(start) <= 0 {
			start = first.previous()
		}
	}
	alive, err := d.aliveAs(ctx, former)
	if err != nil {
		return false, false, err
	}
	if alive > 0 {
		return false, false, fmt.Errorf("it has %d instances: %w", alive, driver.ErrInUse)
	}
	record := d.client.B().Hsetnx().Key(ownerKey(stream, name)).Field("settled").Value(start.String()).Build()
	for _, result := range d.client.DoMulti(ctx, record, createGroup(d.client, stream, name, start)) {
		if err := result.Error(); err != nil && !groupExists(err) {
			return false, false, err
		}
	}
	return true, false, d.client.Do(ctx, d.client.B().XgroupDestroy().Key(stream).Group(former).Build()).Error()
}

// previous is the largest id below.
func (i id) previous() id {
	switch {
	case i.sequence > 0:
		return id{i.time, i.sequence - 1}
	case i.time > 0:
		return id{i.time - 1, math.MaxUint64}
	}
	return id{}
}
