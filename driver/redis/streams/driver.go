package streams

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"
	"sync"
	"time"

	"github.com/redis/rueidis"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/internal/calls"
)

// Driver implements [driver.Driver] over Redis Streams. Make it with [New]. All
// methods may be called at once.
type Driver struct {
	options  Options
	client   rueidis.Client
	features driver.Features
	holder   string // names this driver among the owners of shards
	waitTime time.Duration

	calls calls.Gate

	mu         sync.Mutex
	subscribed map[string]*consumer // by subscription
	channels   map[string]bool      // whose number of shards was compared
	trimming   context.CancelFunc
	trimmer    sync.WaitGroup
	records    map[string][]driver.Declaration // by subscription that declared here: the record as it was last read
	warned     map[string]bool                 // groups and settings that were reported
}

var (
	_ driver.Driver      = (*Driver)(nil)
	_ driver.Namer       = (*Driver)(nil)
	_ driver.Checker     = (*Driver)(nil)
	_ driver.DeadLetters = (*Driver)(nil)
)

// New makes a driver. It asks Redis which version and which cluster it is, so
// Redis has to answer; the error has every complaint about the options at once.
func New(options Options) (*Driver, error) {
	o := options.withDefaults()
	if err := o.check(); err != nil {
		return nil, err
	}
	client, err := rueidis.NewClient(o.Client)
	if err != nil {
		return nil, fmt.Errorf("streams: reaching Redis at %v: %w", o.Client.InitAddress, err)
	}
	return &Driver{
		options: o, client: client, holder: rand.Text(), waitTime: time.Second,
		subscribed: make(map[string]*consumer), channels: make(map[string]bool), warned: make(map[string]bool),
		records: make(map[string][]driver.Declaration),
		features: driver.Features{
			Durable: true, Ordered: true, Groups: true, FanOut: true, Headers: true, History: true, Sources: true,
			MaxSize: o.MaxMessageBytes, RedeliveryHorizon: -1,
		},
	}, nil
}

// Name implements [driver.Driver].
func (d *Driver) Name() string { return "redis-streams" }

// Features implements [driver.Driver].
func (d *Driver) Features() driver.Features { return d.features }

// String names servers and namespace, and no secret.
func (d *Driver) String() string {
	return fmt.Sprintf("redis-streams at %v, namespace %q", d.options.Client.InitAddress, d.options.Namespace)
}

// GoString is String: %#v shows no secret either.
func (d *Driver) GoString() string { return d.String() }

// BrokerName implements [driver.Namer]: the streams of a channel are
// "events:CHANNEL:0" and on, after the namespace and a colon if there is one.
func (d *Driver) BrokerName(channel string) string { return d.prefix() + "events:" + channel }

// DeadLetterName returns the stream that has the dead letters of one subscription
// and channel.
func (d *Driver) DeadLetterName(channel, subscription string) string {
	return d.BrokerName(channel) + ":dead:" + subscription
}

func (d *Driver) prefix() string {
	if d.options.Namespace == "" {
		return ""
	}
	return d.options.Namespace + ":"
}

func (d *Driver) stream(channel string, shard int) string {
	return d.BrokerName(channel) + ":" + strconv.Itoa(shard)
}

// streamOf is the stream of an aggregate.
func (d *Driver) streamOf(channel, aggregateID string) string {
	return d.stream(channel, int(crc32.ChecksumIEEE([]byte(aggregateID))%uint32(d.options.Shards)))
}

func ownerKey(stream, group string) string { return "{" + stream + "}:" + group + ":owner" }

func (d *Driver) groupsKey(channel string) string  { return d.BrokerName(channel) + ":groups" }
func (d *Driver) unknownKey(channel string) string { return d.BrokerName(channel) + ":unknown-groups" }
func (d *Driver) shardsKey(channel string) string  { return d.BrokerName(channel) + ":shards" }
func (d *Driver) membersKey(group string) string {
	return d.prefix() + "subscriptions:" + group + ":members"
}

var errClosed = fmt.Errorf("streams: %w", driver.ErrClosed)

// Check implements [driver.Checker]: Redis answers, and has the number of shards
// that is configured. It takes at most ten seconds.
func (d *Driver) Check(ctx context.Context) error {
	if !d.calls.Enter() {
		return errClosed
	}
	defer d.calls.Leave()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := d.client.Do(ctx, d.client.B().Ping().Build()).Error(); err != nil {
		return fmt.Errorf("streams: reaching Redis at %v: %w", d.options.Client.InitAddress, err)
	}
	d.mu.Lock()
	var channels []string
	for channel := range d.channels {
		channels = append(channels, channel)
	}
	d.mu.Unlock()
	var errs []error
	for _, channel := range channels {
		errs = append(errs, d.compareShards(ctx, channel))
	}
	return errors.Join(errs...)
}

// prepare makes sure, once, that a channel has the configured number of shards.
func (d *Driver) prepare(ctx context.Context, channel string) error {
	d.mu.Lock()
	known := d.channels[channel]
	d.mu.Unlock()
	if known {
		return nil
	}
	if err := d.compareShards(ctx, channel); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.channels[channel] = true
	if d.trimming == nil && d.options.Retention > 0 {
		var trims context.Context
		trims, d.trimming = context.WithCancel(context.Background())
		d.trimmer.Go(func() { d.trimLoop(trims) })
	}
	return nil
}

// errShards is wrapped by the error of a channel with another number of shards.
var errShards = errors.New("another number of shards")

func (d *Driver) compareShards(ctx context.Context, channel string) error {
	key := d.shardsKey(channel)
	results := d.client.DoMulti(ctx,
		d.client.B().Set().Key(key).Value(strconv.Itoa(d.options.Shards)).Nx().Build(),
		d.client.B().Get().Key(key).Build())
	if err := results[0].Error(); err != nil && !rueidis.IsRedisNil(err) {
		return fmt.Errorf("streams: channel %s: recording the number of shards: %w", channel, err)
	}
	recorded, err := results[1].AsInt64()
	if err != nil {
		return fmt.Errorf("streams: channel %s: reading the number of shards: %w", channel, err)
	}
	if recorded != int64(d.options.Shards) {
		return fmt.Errorf("streams: channel %s has %d shards (%s) and Options.Shards is %d: %w: an aggregate would move to another stream and lose its order. Use %d, or let the channel run empty and delete its keys",
			channel, recorded, key, d.options.Shards, errShards, recorded)
	}
	return nil
}

// Close implements [driver.Driver]: calls that are under way end by themselves or
// with ctx.
func (d *Driver) Close(ctx context.Context) error {
	if !d.calls.Close() {
		return nil
	}
	err := d.calls.Wait(ctx, d.client.Close)
	d.mu.Lock()
	if d.trimming != nil {
		d.trimming()
	}
	d.mu.Unlock()
	d.client.Close()
	d.trimmer.Wait()
	return err
}
