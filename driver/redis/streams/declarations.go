package streams

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/redis/rueidis"

	"github.com/tidings-go/tidings/driver"
)

// What the releases of a subscription handle is a set beside its instances: an
// entry is the channel, a space and the event type. Adding to a set is one step, so of
// two that declare at the same time nothing is lost.

var _ driver.Declarations = (*Driver)(nil)

func (d *Driver) typesKey(group string) string {
	return d.prefix() + "subscriptions:" + group + ":types"
}

// Declare implements [driver.Declarations].
func (d *Driver) Declare(ctx context.Context, subscription string, handled []driver.Declaration) ([]driver.Declaration, error) {
	if !d.calls.Enter() {
		return nil, errClosed
	}
	defer d.calls.Leave()
	return d.addDeclared(ctx, subscription, handled)
}

// addDeclared adds to the record and remembers what it has then.
func (d *Driver) addDeclared(ctx context.Context, subscription string, handled []driver.Declaration) ([]driver.Declaration, error) {
	if len(handled) > 0 {
		entries := make([]string, len(handled))
		for n, one := range handled {
			entries[n] = one.Channel + " " + one.Type
		}
		if err := d.client.Do(ctx, d.client.B().Sadd().Key(d.typesKey(subscription)).Member(entries...).Build()).Error(); err != nil {
			return nil, fmt.Errorf("streams: recording what subscription %s handles: %w", subscription, err)
		}
	}
	all, err := d.declared(ctx, subscription)
	if err == nil {
		d.remember(subscription, all)
	}
	return all, err
}

// Declared implements [driver.Declarations]. A record that Redis lost, to a flush or
// a failover, is written again as this process has seen it last: an empty one would
// let events pass that another release handles.
func (d *Driver) Declared(ctx context.Context, subscription string) ([]driver.Declaration, error) {
	if !d.calls.Enter() {
		return nil, errClosed
	}
	defer d.calls.Leave()
	all, err := d.declared(ctx, subscription)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	seen := d.records[subscription]
	d.mu.Unlock()
	if len(seen) == 0 {
		return all, nil // it has declared nothing here
	}
	if len(all) == 0 {
		return d.addDeclared(ctx, subscription, seen)
	}
	d.remember(subscription, all)
	return all, nil
}

func (d *Driver) remember(subscription string, all []driver.Declaration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.records[subscription] = all
}

func (d *Driver) declared(ctx context.Context, subscription string) ([]driver.Declaration, error) {
	entries, err := d.client.Do(ctx, d.client.B().Smembers().Key(d.typesKey(subscription)).Build()).AsStrSlice()
	if err != nil && !rueidis.IsRedisNil(err) {
		return nil, fmt.Errorf("streams: reading what subscription %s handles: %w", subscription, err)
	}
	all := make([]driver.Declaration, 0, len(entries))
	for _, entry := range entries {
		if at := strings.LastIndexByte(entry, ' '); at > 0 {
			all = append(all, driver.Declaration{Channel: entry[:at], Type: entry[at+1:]})
		}
	}
	slices.SortFunc(all, func(a, b driver.Declaration) int {
		return cmp.Or(cmp.Compare(a.Channel, b.Channel), cmp.Compare(a.Type, b.Type))
	})
	return all, nil
}

// ForgetType implements [driver.Declarations]. With the last type of a channel the
// subscription's group goes from the channel's streams, so that nothing there is
// kept for it any more. While an instance is alive that reads the channel, that is
// [driver.ErrInUse], and nothing is forgotten. The epochs of owners stay: they only
// grow.
func (d *Driver) ForgetType(ctx context.Context, subscription, eventType string) (known bool, err error) {
	if !d.calls.Enter() {
		return false, errClosed
	}
	defer d.calls.Leave()
	all, err := d.declared(ctx, subscription)
	if err != nil {
		return false, err
	}
	var entries, channels []string
	left := make(map[string]bool) // channels of other types
	for _, one := range all {
		if one.Type == eventType {
			entries, channels = append(entries, one.Channel+" "+one.Type), append(channels, one.Channel)
		} else {
			left[one.Channel] = true
		}
	}
	if len(entries) == 0 {
		return false, nil
	}
	channels = slices.DeleteFunc(channels, func(channel string) bool { return left[channel] })
	alive, err := d.membersOf(ctx, subscription)
	if err != nil {
		return false, err
	}
	for _, channel := range channels {
		if n := knowing(alive, channel); n > 0 {
			return false, fmt.Errorf("streams: subscription %s: %s is the last type of channel %s, and %d instances read it: %w", subscription, eventType, channel, n, driver.ErrInUse)
		}
	}
	if err := d.client.Do(ctx, d.client.B().Srem().Key(d.typesKey(subscription)).Member(entries...).Build()).Error(); err != nil {
		return false, fmt.Errorf("streams: forgetting type %s of subscription %s: %w", eventType, subscription, err)
	}
	for _, channel := range channels {
		if err := d.forgetChannel(ctx, subscription, channel); err != nil {
			return true, err
		}
	}
	return true, nil
}

// forgetChannel takes the groups of a subscription from the streams of a channel.
func (d *Driver) forgetChannel(ctx context.Context, subscription, channel string) error {
	shards, err := d.recordedShards(ctx, channel)
	if err != nil {
		return err
	}
	// Undeclared first: nothing then makes up for a group that is gone.
	commands := rueidis.Commands{
		d.client.B().Srem().Key(d.groupsKey(channel)).Member(subscription).Build(),
		d.client.B().Hdel().Key(d.unknownKey(channel)).Field(subscription).Build(),
	}
	for n := range shards {
		stream := d.stream(channel, n)
		commands = append(commands,
			d.client.B().XgroupDestroy().Key(stream).Group(subscription).Build(),
			d.client.B().Hdel().Key(ownerKey(stream, subscription)).Field("settled").Build())
	}
	for _, result := range d.client.DoMulti(ctx, commands...) {
		if err := result.Error(); err != nil && !missingKey(err) && !streamMissing(err) {
			return fmt.Errorf("streams: the position of subscription %s on channel %s: %w", subscription, channel, err)
		}
	}
	return nil
}

// streamMissing reports what XGROUP says of a stream that is not there.
func streamMissing(err error) bool { return strings.Contains(err.Error(), "requires the key to exist") }

// renameDeclared gives a subscription what was declared under its former name, unless
// it has declared something itself and took over no position: what was forgotten
// since does not come back.
func (d *Driver) renameDeclared(ctx context.Context, former, name string, before []driver.Declaration, moved bool) error {
	if len(before) == 0 {
		return nil
	}
	has, err := d.declared(ctx, name)
	if err != nil || len(has) > 0 && !moved {
		return err
	}
	alive, err := d.aliveAs(ctx, former)
	if err != nil {
		return err
	}
	if alive > 0 {
		return fmt.Errorf("streams: subscription %s: taking over from %s: it has %d instances: %w", name, former, alive, driver.ErrInUse)
	}
	if _, err := d.addDeclared(ctx, name, before); err != nil {
		return err
	}
	if err := d.client.Do(ctx, d.client.B().Del().Key(d.typesKey(former)).Build()).Error(); err != nil {
		return fmt.Errorf("streams: deleting what subscription %s handled: %w", former, err)
	}
	return nil
}

// knowing is how many members know a channel.
func knowing(alive []driver.Member, channel string) (n int) {
	for _, m := range alive {
		if m.Parts[channel] > 0 {
			n++
		}
	}
	return n
}

// inspectUnread finds channels that a release of a subscription handles and no
// instance that is alive reads, although others are.
func (d *Driver) inspectUnread(ctx context.Context, stored []driver.StoredSubscription) (findings []driver.Finding, err error) {
	for _, s := range stored {
		if s.Instances < 1 {
			continue // nothing of it is read, which is told as its lag
		}
		all, err := d.declared(ctx, s.Name)
		if err != nil {
			return findings, err
		}
		alive, err := d.membersOf(ctx, s.Name)
		if err != nil {
			return findings, err
		}
		types := make(map[string][]string)
		for _, one := range all {
			types[one.Channel] = append(types[one.Channel], one.Type)
		}
		for _, channel := range slices.Sorted(maps.Keys(types)) {
			lacked := types[channel]
			if knowing(alive, channel) > 0 {
				continue
			}
			var forget []string
			for _, eventType := range lacked {
				forget = append(forget, fmt.Sprintf("`tidings subscription forget-type %s %s`", s.Name, eventType))
			}
			findings = append(findings, driver.Finding{
				Severity: driver.Weak, Check: "subscription-channel-unread", Subject: "subscription " + s.Name,
				What: fmt.Sprintf("a release of it handles %s on channel %s, and none of the %d instances that are alive reads that channel", strings.Join(lacked, ", "), channel, len(alive)),
				Why:  "its events wait for an instance that handles them, and nothing that it has not finished is trimmed",
				Fix:  "deploy the release that handles them; or, if none does any more, " + strings.Join(forget, " and "),
			})
		}
	}
	return findings, nil
}
