package streams

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/redis/rueidis"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/redis/internal/wire"
	"github.com/tidings-go/tidings/internal/outage"
	"github.com/tidings-go/tidings/internal/share"
)

// outageAfter is how long Redis may not answer before that is reported.
const outageAfter = time.Second

// Subscribe implements [driver.Driver]. It declares the subscription's group on
// every shard, so that nothing published from now on is trimmed or missed. A group
// that is new begins where StartAt says; one that Redis lost begins again where
// its owner's record says.
func (d *Driver) Subscribe(ctx context.Context, s driver.Subscription, sink driver.Sink) (driver.Consumer, error) {
	if !d.calls.Enter() {
		return nil, errClosed
	}
	defer d.calls.Leave()
	if s.Name == "" || len(s.Channels) == 0 {
		return nil, fmt.Errorf("streams: subscription %q needs a name and at least one channel", s.Name)
	}
	c := &consumer{
		driver: d, subscription: s, sink: sink, outage: outage.New(sink, outageAfter, "Redis does not answer"),
		maxEvents: cmp.Or(s.MaxEvents, d.options.MaxEvents), maxBytes: cmp.Or(s.MaxBytes, d.options.MaxBytes),
		channels: make(map[string]string), resume: make(map[string]id), shards: make(map[string]*shard),
		wake: make(chan struct{}, 1), drained: make(chan struct{}),
	}
	var streams []string
	shards := make(map[string][]string) // by channel
	var errs []error
	for _, channel := range s.Channels {
		if err := d.prepare(ctx, channel); err != nil {
			errs = append(errs, fmt.Errorf("subscription %s: %w", s.Name, err))
			continue
		}
		for n := range d.options.Shards {
			stream := d.stream(channel, n)
			c.channels[stream] = channel
			streams = append(streams, stream)
			shards[channel] = append(shards[channel], stream)
		}
	}
	if errs != nil {
		return nil, errors.Join(errs...)
	}
	if err := c.declare(ctx, streams); err != nil {
		return nil, fmt.Errorf("streams: subscription %s: %w", s.Name, err)
	}
	d.warn(ctx, sink)
	c.leases = &leases{
		client: d.client, members: d.membersKey(s.Name), owner: func(stream string) string { return ownerKey(stream, s.Name) },
		held: make(map[string]int64), seen: make(map[string]int64), settled: make(map[string]string),
	}
	c.share = share.New(share.Options{
		Leases: c.leases, Group: s.Name, Holder: d.holder, Names: shards, TTL: d.options.LeaseTime,
		Adopt: c.adopt, Drain: c.drain, GiveUp: c.giveUp, Lost: c.lost, Joined: sink.Joined, Failed: c.outage.Failed,
		Stuck: func() bool { return s.IsUnable(d.options.LeaseTime) },
	})
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.subscribed[s.Name] != nil {
		return nil, fmt.Errorf("streams: subscription %s exists already on this driver", s.Name)
	}
	d.subscribed[s.Name] = c
	return c, nil
}

// declare makes the group on every shard and says that it is meant to be there.
func (c *consumer) declare(ctx context.Context, streams []string) error {
	client, group := c.driver.client, c.subscription.Name
	var commands rueidis.Commands
	for _, stream := range streams {
		commands = append(commands,
			client.B().Xrevrange().Key(stream).End("+").Start("-").Count(1).Build(),
			client.B().XinfoGroups().Key(stream).Build(),
			client.B().Hget().Key(ownerKey(stream, group)).Field("settled").Build())
	}
	answers := client.DoMulti(ctx, commands...)
	creates := make(rueidis.Commands, 0, len(streams))
	var created, unknown []string
	for n, stream := range streams {
		newest, groups, settled := answers[3*n], answers[3*n+1], answers[3*n+2]
		last, err := lastEntry(newest)
		if err != nil {
			return fmt.Errorf("%s: %w", stream, err)
		}
		known, err := groupsOf(groups)
		if err != nil {
			return fmt.Errorf("%s: %w", stream, err)
		}
		record, err := settled.ToString()
		if err != nil && !rueidis.IsRedisNil(err) {
			return fmt.Errorf("%s: %w", stream, err)
		}
		start := c.startID(last)
		if record != "" {
			if start, err = parseID(record); err != nil {
				return fmt.Errorf("the owner's record of %s: %w", stream, err)
			}
		}
		c.resume[stream] = start
		if _, exists := known[group]; exists {
			continue
		}
		if record == "" && c.subscription.StartAt.Mode == driver.StartUnset {
			unknown = append(unknown, stream)
			continue
		}
		created = append(created, stream)
		creates = append(creates, createGroup(client, stream, group, start))
	}
	if unknown != nil {
		return fmt.Errorf("it is new: no group of that name on %s. Say where it starts: StartAt Beginning reads everything that the streams still have, StartAt Now only what is published from now on", unknown[0])
	}
	for n, result := range client.DoMulti(ctx, creates...) {
		if err := result.Error(); err != nil && !groupExists(err) {
			return fmt.Errorf("group on %s: %w", created[n], err)
		}
	}
	for _, channel := range c.subscription.Channels {
		if err := c.driver.declareGroup(ctx, channel, group); err != nil {
			return err
		}
	}
	return nil
}

// declareGroup says that a group is meant to be on the streams of a channel.
func (d *Driver) declareGroup(ctx context.Context, channel, group string) error {
	if err := d.client.Do(ctx, d.client.B().Sadd().Key(d.groupsKey(channel)).Member(group).Build()).Error(); err != nil {
		return fmt.Errorf("declare group %s for channel %s: %w", group, channel, err)
	}
	return nil
}

func createGroup(client rueidis.Client, stream, group string, start id) rueidis.Completed {
	return client.B().XgroupCreate().Key(stream).Group(group).Id(start.String()).Mkstream().Build()
}

func groupExists(err error) bool { return strings.Contains(err.Error(), "BUSYGROUP") }

func groupMissing(err error) bool { return strings.Contains(err.Error(), "NOGROUP") }

// startID is the id after which a new group begins. What exists now is what "now"
// means: the id is remembered, so that a group that is lost does not begin later.
func (c *consumer) startID(last id) id {
	switch c.subscription.StartAt.Mode {
	case driver.StartNow:
		return last
	case driver.StartTime:
		return before(c.subscription.StartAt.Time)
	}
	return id{}
}

func missingKey(err error) bool { return strings.Contains(err.Error(), "no such key") }

// lastEntry reads the last id of a stream from XREVRANGE.
func lastEntry(result rueidis.RedisResult) (id, error) {
	entries, err := parseEntries(result)
	if err != nil || len(entries) == 0 {
		return id{}, err
	}
	return entries[0].id, nil
}

// group is what XINFO GROUPS says of one.
type group struct {
	delivered id // the last one
	pending   int64
}

func groupsOf(result rueidis.RedisResult) (map[string]group, error) {
	list, err := result.ToArray()
	if err != nil {
		if missingKey(err) {
			return nil, nil
		}
		return nil, err
	}
	groups := make(map[string]group, len(list))
	for n := range list {
		about, err := list[n].AsMap()
		if err != nil {
			return nil, err
		}
		nameValue, pendingValue, lastValue := about["name"], about["pending"], about["last-delivered-id"]
		name, err := nameValue.ToString()
		if err != nil {
			return nil, err
		}
		var g group
		if g.pending, err = pendingValue.AsInt64(); err != nil {
			return nil, err
		}
		last, err := lastValue.ToString()
		if err != nil {
			return nil, err
		}
		if g.delivered, err = parseID(last); err != nil {
			return nil, err
		}
		groups[name] = g
	}
	return groups, nil
}

// warn reports, once, live settings that are weaker than what the driver
// promises.
func (d *Driver) warn(ctx context.Context, sink driver.Sink) {
	for _, finding := range wire.InspectServer(ctx, d.client) {
		if text := finding.String(); d.once(text) {
			sink.Report(driver.Report{Kind: driver.ReportWarning, Text: text})
		}
	}
}

// once reports true the first time that a text comes.
func (d *Driver) once(text string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.warned[text] {
		return false
	}
	d.warned[text] = true
	return true
}
