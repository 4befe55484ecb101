package streams

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/redis/rueidis"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/redis/internal/wire"
)

var (
	_ driver.Inspector   = (*Driver)(nil)
	_ driver.Provisioner = (*Driver)(nil)
)

// Inspect implements [driver.Inspector]: settings under which Redis loses or
// deletes events, channels with another number of shards, groups that lag or
// belong to nobody, channels of a subscription that none of its instances reads.
func (d *Driver) Inspect(ctx context.Context, topology driver.Topology, options driver.InspectOptions) (findings []driver.Finding, err error) {
	if !d.calls.Enter() {
		return nil, errClosed
	}
	defer d.calls.Leave()
	findings = append(wire.InspectServer(ctx, d.client), wire.InspectState(ctx, d.client)...)
	for _, channel := range channelsOf(topology) {
		recorded, err := d.recordedShards(ctx, channel)
		if err != nil {
			return findings, err
		}
		if recorded != 0 && recorded != d.options.Shards {
			findings = append(findings, driver.Finding{
				Severity: driver.Broken, Check: "redis-shards", Subject: "channel " + channel, What: fmt.Sprintf("it has %d shards, and the driver is told %d", recorded, d.options.Shards),
				Why: "an aggregate would move to another stream and lose its order, so the driver does not start", Fix: fmt.Sprintf("say %d, or let the channel run empty and delete its keys", recorded),
			})
		}
	}
	stored, err := d.stored(ctx, driver.StoredOptions{})
	if err != nil {
		return findings, err
	}
	unread, err := d.inspectUnread(ctx, stored)
	return slices.Concat(findings, driver.InspectStored(stored, topology, options), unread), err
}

// channelsOf are all channels of a topology.
func channelsOf(topology driver.Topology) (channels []string) {
	seen := make(map[string]bool)
	add := func(channel string) {
		if !seen[channel] {
			seen[channel] = true
			channels = append(channels, channel)
		}
	}
	for _, channel := range topology.Channels {
		add(channel.Name)
	}
	for _, s := range topology.Subscriptions {
		for _, channel := range s.Channels {
			add(channel)
		}
	}
	return channels
}

// recordedShards is how many shards a channel has, 0 for one that nobody has
// used.
func (d *Driver) recordedShards(ctx context.Context, channel string) (int, error) {
	n, err := d.client.Do(ctx, d.client.B().Get().Key(d.shardsKey(channel)).Build()).AsInt64()
	if rueidis.IsRedisNil(err) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("streams: channel %s: reading the number of shards: %w", channel, err)
	}
	return int(n), nil
}

// Provision implements [driver.Provisioner]: the number of shards of each channel
// is recorded. Streams appear with their first event, and groups with the first
// start of a subscription, which says where they begin.
func (d *Driver) Provision(ctx context.Context, topology driver.Topology, dry bool) (resources []driver.Resource, err error) {
	if !d.calls.Enter() {
		return nil, errClosed
	}
	defer d.calls.Leave()
	for _, channel := range channelsOf(topology) {
		r := driver.Resource{Kind: "stream", Name: d.BrokerName(channel), State: driver.ResourceThere, Detail: fmt.Sprintf("%d shards", d.options.Shards)}
		recorded, err := d.recordedShards(ctx, channel)
		if err != nil {
			return resources, err
		}
		if recorded == 0 {
			r.State = driver.ResourceMissing
			if !dry {
				r.State = driver.ResourceMade
			}
		}
		if !dry {
			if err := d.compareShards(ctx, channel); err != nil {
				return resources, err
			}
		}
		resources = append(resources, r)
	}
	return resources, nil
}

// Grants implements [driver.Provisioner]: one ACL SETUSER line
// (https://redis.io/docs/latest/operate/oss_and_stack/management/security/acl/).
// The claims of package store/redis are in it.
func (d *Driver) Grants(topology driver.Topology, principal string) []driver.Grant {
	if len(topology.Channels)+len(topology.Subscriptions) == 0 {
		return nil
	}
	prefix := d.prefix()
	keys := []string{"~" + prefix + "events:*", "~{" + prefix + "events:*", "~" + prefix + "subscriptions:*", "~" + prefix + "claims:*", "~" + prefix + "dead:*", "~{" + prefix + "dead:*"}
	commands := []string{
		"+@connection", "+@scripting", "-script|flush", "-script|kill", "+@stream", "+@hash", "+@sortedset", "+@set", "+get", "+set", "+del", "+exists", "+pexpire", "+pexpireat",
		"+rename", "+renamenx", "+time", "+info", "+config|get", "+cluster|slots", "+cluster|shards", "+scan",
	}
	return []driver.Grant{{
		What: "Redis ACL",
		Text: fmt.Sprintf("ACL SETUSER %s on '>%s' %s %s\n", cmp.Or(principal, "<user>"), "<password>", strings.Join(keys, " "), strings.Join(commands, " ")),
	}}
}

// scan lists keys of every server of a cluster.
func (d *Driver) scan(ctx context.Context, pattern string) (keys []string, err error) {
	seen := make(map[string]bool)
	for address, node := range d.client.Nodes() {
		for cursor := uint64(0); ; {
			entry, err := node.Do(ctx, node.B().Scan().Cursor(cursor).Match(pattern).Count(1000).Build()).AsScanEntry()
			if err != nil {
				return nil, fmt.Errorf("streams: looking for keys on %s: %w", address, err)
			}
			for _, key := range entry.Elements {
				if !seen[key] {
					seen[key] = true
					keys = append(keys, key)
				}
			}
			if cursor = entry.Cursor; cursor == 0 {
				break
			}
		}
	}
	return keys, nil
}

// storedChannels are the channels that Redis knows of, with their numbers of
// shards; of some only, where they are given.
func (d *Driver) storedChannels(ctx context.Context, among []string) (map[string]int, error) {
	before, behind := d.prefix()+"events:", ":shards"
	if among == nil {
		keys, err := d.scan(ctx, escapePattern(before)+"*"+behind)
		if err != nil {
			return nil, err
		}
		for _, key := range keys {
			among = append(among, strings.TrimSuffix(strings.TrimPrefix(key, before), behind))
		}
	}
	channels := make(map[string]int)
	for _, channel := range among {
		n, err := d.recordedShards(ctx, channel)
		if err != nil {
			return nil, err
		}
		channels[channel] = n
	}
	return channels, nil
}

// escapePattern makes a pattern of MATCH of a text.
func escapePattern(text string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(text)
}

// mostCounted bounds what is counted where Redis does not know a lag by itself.
const mostCounted = 10_000

// lagOf is how many entries of a stream a group has not finished: those that were
// not delivered, and those that are pending.
func (d *Driver) lagOf(ctx context.Context, stream string, about map[string]rueidis.RedisMessage) (int64, error) {
	pendingValue, lastValue := about["pending"], about["last-delivered-id"]
	pending, err := pendingValue.AsInt64()
	if err != nil {
		return 0, err
	}
	if lag, known := about["lag"]; known { // from 7.0 on, and only where it can be told
		if n, err := lag.AsInt64(); err == nil {
			return n + pending, nil
		}
	}
	last, err := lastValue.ToString()
	if err != nil {
		return 0, err
	}
	entries, err := d.client.Do(ctx, d.client.B().Xrange().Key(stream).Start("("+last).End("+").Count(mostCounted).Build()).ToArray()
	if err != nil {
		return 0, err
	}
	return int64(len(entries)) + pending, nil
}

// aliveAs is how many instances are alive under a name.
func (d *Driver) aliveAs(ctx context.Context, name string) (int64, error) {
	alive, err := d.membersOf(ctx, name)
	return int64(len(alive)), err
}

// membersOf are the instances that are alive under a name.
func (d *Driver) membersOf(ctx context.Context, name string) ([]driver.Member, error) {
	now, err := d.now(ctx)
	if err != nil {
		return nil, err
	}
	entries, err := d.client.Do(ctx, d.client.B().Zrangebyscore().Key(d.membersKey(name)).Min("("+strconv.FormatInt(now.UnixMilli(), 10)).Max("+inf").Build()).AsStrSlice()
	if err != nil {
		return nil, fmt.Errorf("streams: instances of %s: %w", name, err)
	}
	return membersIn(entries), nil
}
