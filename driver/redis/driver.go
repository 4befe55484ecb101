package redis

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
	"github.com/tidings-go/tidings/internal/calls"
)

// Options configures a driver.
type Options struct {
	// Client is how Redis is reached; rueidis.ParseURL makes one of a URL. Needed:
	// InitAddress. The driver turns client-side caching off, and gives Redis five
	// seconds for an answer where ConnWriteTimeout says nothing else.
	Client rueidis.ClientOption

	// MaxBytes and MaxEvents bound what is received and not finished, per
	// subscription. They default to 64 MiB and 10 000.
	MaxBytes  int
	MaxEvents int

	// MaxDeadLetters is about how many dead letters of a subscription and channel
	// are kept. Defaults to 10 000.
	MaxDeadLetters int

	// MaxMessageBytes is the largest body. Defaults to 1 MiB.
	MaxMessageBytes int

	// Namespace goes before every channel, with a colon.
	Namespace string

	// ReconnectInterval is the longest time between two attempts to connect.
	// Defaults to 5 seconds.
	ReconnectInterval time.Duration
}

// String names servers, user and namespace, and no secret.
func (o Options) String() string {
	return fmt.Sprintf("redis %s, user %q, TLS %t, namespace %q", strings.Join(o.Client.InitAddress, ","), o.Client.Username, o.Client.TLSConfig != nil, o.Namespace)
}

// GoString is String: %#v shows no secret either.
func (o Options) GoString() string { return "redis.Options{" + o.String() + "}" }

// MarshalText writes String, in JSON too.
func (o Options) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

func (o Options) withDefaults() Options {
	o.MaxBytes = cmp.Or(o.MaxBytes, 64<<20)
	o.MaxEvents = cmp.Or(o.MaxEvents, 10_000)
	o.MaxDeadLetters = cmp.Or(o.MaxDeadLetters, 10_000)
	o.MaxMessageBytes = cmp.Or(o.MaxMessageBytes, 1<<20)
	o.ReconnectInterval = cmp.Or(o.ReconnectInterval, 5*time.Second)
	o.Client.ConnWriteTimeout = cmp.Or(o.Client.ConnWriteTimeout, wire.AnswerTime)
	o.Client.DisableCache = true
	o.Client.DisableRetry = true    // a publish that failed may have been done
	o.Client.PipelineMultiplex = -1 // one connection, so that what one process publishes is not reordered on its way
	return o
}

func (o Options) check() error {
	var errs []error
	complain := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(o.Client.InitAddress) == 0 {
		complain("Options.Client.InitAddress is empty: name at least one server, for example localhost:6379")
	}
	if !wire.NamespaceForm.MatchString(o.Namespace) {
		complain("Options.Namespace %q: letters, digits, dot, dash and underscore, at most 100", o.Namespace)
	}
	if o.MaxEvents < 1 || o.MaxBytes < 1 || o.MaxMessageBytes < 1 || o.MaxDeadLetters < 1 {
		complain("Options.MaxEvents is %d, MaxBytes %d, MaxMessageBytes %d and MaxDeadLetters %d: all must be positive", o.MaxEvents, o.MaxBytes, o.MaxMessageBytes, o.MaxDeadLetters)
	}
	if o.ReconnectInterval < 0 {
		complain("Options.ReconnectInterval is %v: it must be positive", o.ReconnectInterval)
	}
	if len(errs) == 0 {
		return nil
	}
	return fmt.Errorf("redis: %w", errors.Join(errs...))
}

// Driver implements [driver.Driver] over Redis pub/sub. Make it with [New]. All
// methods may be called at once.
type Driver struct {
	options  Options
	client   rueidis.Client
	features driver.Features

	calls calls.Gate
}

var (
	_ driver.Driver      = (*Driver)(nil)
	_ driver.Namer       = (*Driver)(nil)
	_ driver.Checker     = (*Driver)(nil)
	_ driver.DeadLetters = (*Driver)(nil)
)

// New makes a driver. It asks Redis which version it is, so Redis has to answer;
// the error has every complaint about the options at once.
func New(options Options) (*Driver, error) {
	o := options.withDefaults()
	if err := o.check(); err != nil {
		return nil, err
	}
	client, err := rueidis.NewClient(o.Client)
	if err != nil {
		return nil, fmt.Errorf("redis: reaching Redis at %v: %w", o.Client.InitAddress, err)
	}
	return &Driver{options: o, client: client, features: driver.Features{FanOut: true, Broadcast: true, MaxSize: o.MaxMessageBytes}}, nil
}

// Name implements [driver.Driver].
func (d *Driver) Name() string { return "redis" }

// Features implements [driver.Driver].
func (d *Driver) Features() driver.Features { return d.features }

// String names servers and namespace, and no secret.
func (d *Driver) String() string {
	return fmt.Sprintf("redis at %v, namespace %q", d.options.Client.InitAddress, d.options.Namespace)
}

// GoString is String: %#v shows no secret either.
func (d *Driver) GoString() string { return d.String() }

// BrokerName implements [driver.Namer] for a channel with one event type of its
// name: the Redis channel is the event type, after the namespace and a colon if
// there is one.
func (d *Driver) BrokerName(channel string) string { return d.topic(channel) }

func (d *Driver) topic(eventType string) string {
	if d.options.Namespace == "" {
		return eventType
	}
	return d.options.Namespace + ":" + eventType
}

// DeadLetterName returns the stream that has the dead letters of one subscription
// and channel.
func (d *Driver) DeadLetterName(channel, subscription string) string {
	return d.topic("events:" + channel + ":dead:" + subscription)
}

// PutDeadLetter implements [driver.DeadLetters]: the raw body with what went wrong
// goes to the stream of [Driver.DeadLetterName], which keeps about
// Options.MaxDeadLetters of them. Each instance writes what it gave up on itself.
func (d *Driver) PutDeadLetter(ctx context.Context, letter driver.DeadLetter) error {
	if !d.calls.Enter() {
		return errClosed
	}
	defer d.calls.Leave()
	stream := d.DeadLetterName(letter.Channel, letter.Subscription)
	if err := wire.PutDeadLetter(ctx, d.client, stream, &letter, d.options.MaxDeadLetters); err != nil {
		return fmt.Errorf("redis: subscription %s: dead letter %s to %s: %w", letter.Subscription, letter.ID, stream, err)
	}
	return nil
}

var errClosed = fmt.Errorf("redis: %w", driver.ErrClosed)

// Publish implements [driver.Driver]. Nil means that Redis took the messages and
// gave them to whoever was connected, perhaps to nobody. A message over the limit
// is refused before anything is sent.
func (d *Driver) Publish(ctx context.Context, messages []driver.Message) error {
	if len(messages) == 0 {
		return nil
	}
	if !d.calls.Enter() {
		return errClosed
	}
	defer d.calls.Leave()
	if ctx.Err() != nil {
		return fmt.Errorf("redis: nothing was sent: %w", context.Cause(ctx))
	}
	commands := make(rueidis.Commands, len(messages))
	for n, m := range messages {
		if len(m.Body) > d.options.MaxMessageBytes {
			return fmt.Errorf("redis: %s %s: %w: the body has %d bytes, Options.MaxMessageBytes is %d", m.Type, m.ID, driver.ErrTooLarge, len(m.Body), d.options.MaxMessageBytes)
		}
		commands[n] = d.client.B().Publish().Channel(d.topic(typeOf(&m))).Message(rueidis.BinaryString(m.Body)).Build()
	}
	failed := false
	results := make([]driver.PublishResult, len(messages))
	for n, result := range d.client.DoMulti(ctx, commands...) {
		err := result.Error()
		results[n].State = driver.Stored
		if err == nil {
			continue
		}
		failed = true
		results[n].State = driver.Unknown
		if wire.Refused(err) {
			results[n].State = driver.NotStored
		}
		results[n].Err = fmt.Errorf("redis: publish %s %s: %w", messages[n].Type, messages[n].ID, err)
	}
	if failed {
		return &driver.PublishError{Results: results}
	}
	return nil
}

// typeOf is the event type of a message; a plain one may have only its channel.
func typeOf(m *driver.Message) string {
	return cmp.Or(m.Type, m.Headers.Get(driver.HeaderEventType), m.Channel)
}

// Check implements [driver.Checker]: Redis answers within ten seconds.
func (d *Driver) Check(ctx context.Context) error {
	if !d.calls.Enter() {
		return errClosed
	}
	defer d.calls.Leave()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := d.client.Do(ctx, d.client.B().Ping().Build()).Error(); err != nil {
		return fmt.Errorf("redis: reaching Redis at %v: %w", d.options.Client.InitAddress, err)
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
	d.client.Close()
	return err
}
