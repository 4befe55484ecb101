package kafka

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tidings-go/tidings/driver"
)

// patience is how long a test waits for something that is sure to come.
const patience = 15 * time.Second

// newCluster starts a broker inside the process.
func newCluster(t testing.TB, options ...kfake.Opt) *kfake.Cluster {
	t.Helper()
	options = append([]kfake.Opt{kfake.NumBrokers(1), kfake.GroupMinSessionTimeout(100 * time.Millisecond), kfake.BrokerConfigs(map[string]string{
		"group.initial.rebalance.delay.ms": "0",
	})}, options...)
	cluster, err := kfake.NewCluster(options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	return cluster
}

func newDriver(t testing.TB, brokers []string, change ...func(*Options)) *Driver {
	t.Helper()
	options := Options{Brokers: brokers, SessionTimeout: 6 * time.Second, RebalanceTimeout: 10 * time.Second}
	for _, f := range change {
		f(&options)
	}
	d, err := New(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := d.Close(ctx); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return d
}

// brokers returns the addresses in an environment variable; without it the test
// is skipped, or fails where brokers are required.
func brokers(t testing.TB, variable string) []string {
	t.Helper()
	value := os.Getenv(variable)
	if value == "" {
		if os.Getenv("TIDINGS_REQUIRE_BROKERS") == "1" {
			t.Fatalf("%s is not set, and TIDINGS_REQUIRE_BROKERS=1", variable)
		}
		t.Skipf("%s is not set: no such broker (scripts/brokers up starts one)", variable)
	}
	return strings.Split(value, ",")
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(patience)
	look := time.NewTicker(2 * time.Millisecond)
	defer look.Stop()
	for !condition() {
		select {
		case <-look.C:
		case <-deadline:
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// sink is an engine that does nothing by itself.
type sink struct {
	mu         sync.Mutex
	joined     chan struct{}
	once       sync.Once
	deliveries []driver.Delivery
	reports    []driver.Report
	lost       []driver.Source
	revoked    []driver.Source
	revoke     func(ctx context.Context, sources []driver.Source)
	deliver    func([]driver.Delivery)
}

func newSink() *sink { return &sink{joined: make(chan struct{})} }

func (s *sink) Joined() { s.once.Do(func() { close(s.joined) }) }

func (s *sink) Deliver(_ context.Context, deliveries []driver.Delivery) {
	s.mu.Lock()
	s.deliveries = append(s.deliveries, deliveries...)
	f := s.deliver
	s.mu.Unlock()
	if f != nil {
		f(deliveries)
	}
}

func (s *sink) Revoke(ctx context.Context, sources []driver.Source) {
	s.mu.Lock()
	s.revoked = append(s.revoked, sources...)
	f := s.revoke
	s.mu.Unlock()
	if f != nil {
		f(ctx, sources)
	}
}

func (s *sink) Lose(sources []driver.Source) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost = append(s.lost, sources...)
}

func (s *sink) Report(r driver.Report) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reports = append(s.reports, r)
}

func (s *sink) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.deliveries)
}

func (s *sink) got() []driver.Delivery {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]driver.Delivery(nil), s.deliveries...)
}

func (s *sink) reported(kind driver.ReportKind) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, r := range s.reports {
		if r.Kind == kind {
			n++
		}
	}
	return n
}

func (s *sink) bodies() string {
	var all []string
	for _, d := range s.got() {
		all = append(all, string(d.Body))
	}
	return strings.Join(all, " ")
}

// running is a consumer whose Run is under way.
type running struct {
	driver.Consumer
	sink   *sink
	cancel context.CancelFunc
	err    chan error
	closed bool
}

func start(t testing.TB, d *Driver, s driver.Subscription, with *sink) *running {
	t.Helper()
	c, err := d.Subscribe(t.Context(), s, with)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{Consumer: c, sink: with, cancel: cancel, err: make(chan error, 1)}
	go func() { r.err <- c.Run(ctx) }()
	t.Cleanup(func() { r.close(t) })
	select {
	case <-with.joined:
	case err := <-r.err:
		r.err <- nil
		t.Fatalf("Run ended before it joined: %v", err)
	case <-time.After(patience):
		t.Fatal("not joined")
	}
	return r
}

// close ends Run as the engine does and leaves the group.
func (r *running) close(t testing.TB) {
	t.Helper()
	if r.closed {
		return
	}
	r.closed = true
	r.cancel()
	select {
	case err := <-r.err:
		if err != nil {
			t.Errorf("Run: %v", err)
		}
	case <-time.After(patience):
		t.Error("Run does not end")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := r.Close(ctx); err != nil {
		t.Errorf("Close: %v", err)
	}
}

func (r *running) finish(t testing.TB, deliveries ...driver.Delivery) {
	t.Helper()
	if err := r.Settle(t.Context(), finished(deliveries...)); err != nil {
		t.Fatalf("Settle: %v", err)
	}
}

func finished(deliveries ...driver.Delivery) []driver.Settlement {
	var all []driver.Settlement
	for _, d := range deliveries {
		all = append(all, driver.Settlement{Ref: d.Ref, Source: d.Source, Outcome: driver.Finished})
	}
	return all
}

func message(channel, key, body string) driver.Message {
	return driver.Message{Channel: channel, Key: key, ID: body, Body: []byte(body), Headers: driver.Headers{{Name: driver.HeaderEventID, Value: body}}}
}

func publish(t testing.TB, d *Driver, messages ...driver.Message) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := d.Publish(ctx, messages); err != nil {
		t.Fatalf("Publish: %v", err)
	}
}

func numbered(channel, key string, from, to int) []driver.Message {
	var all []driver.Message
	for n := from; n < to; n++ {
		all = append(all, message(channel, key, fmt.Sprint(n)))
	}
	return all
}

func subscription(name string, channels ...string) driver.Subscription {
	return driver.Subscription{Name: name, Channels: channels, StartAt: driver.StartAt{Mode: driver.StartBeginning}}
}

// client is a plain client of the same broker.
func client(t testing.TB, brokers []string, options ...kgo.Opt) *kgo.Client {
	t.Helper()
	c, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(brokers...)}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func single(o *Options) { o.Partitions = 1 }

func TestPublishAndSubscribe(t *testing.T) {
	cluster := newCluster(t)
	d := newDriver(t, cluster.ListenAddrs())
	s := newSink()
	r := start(t, d, subscription("billing.profile", "identity.user.created"), s)
	var messages []driver.Message
	for key := range 20 {
		messages = append(messages, numbered("identity.user.created", fmt.Sprint("user-", key), 0, 10)...)
	}
	publish(t, d, messages...)
	eventually(t, "200 deliveries", func() bool { return s.count() == 200 })
	next := make(map[string]int)
	for _, got := range s.got() {
		if want := fmt.Sprint(next[got.Key]); string(got.Body) != want {
			t.Fatalf("key %s: got %s, want %s", got.Key, got.Body, want)
		}
		next[got.Key]++
		if got.Headers.Get(driver.HeaderEventID) != string(got.Body) || got.Channel != "identity.user.created" || got.Time.IsZero() {
			t.Fatalf("delivery is not what was published: %+v", got)
		}
		if p := got.Ref.Position(); !strings.HasPrefix(p, "events.identity-user-created/") || strings.Count(p, "/") != 2 {
			t.Fatalf("Position %q", p)
		}
	}
	r.finish(t, s.got()...)
	r.close(t)

	again := newSink()
	start(t, d, subscription("billing.profile", "identity.user.created"), again)
	publish(t, d, message("identity.user.created", "user-1", "last"))
	eventually(t, "one delivery", func() bool { return again.count() > 0 })
	if got := again.bodies(); got != "last" {
		t.Fatalf("after a restart: %s", got)
	}
}

func TestRestartDeliversOnlyUnfinished(t *testing.T) {
	cluster := newCluster(t)
	d := newDriver(t, cluster.ListenAddrs(), single)
	s := newSink()
	r := start(t, d, subscription("billing.profile", "a.b.c"), s)
	publish(t, d, numbered("a.b.c", "k", 0, 10)...)
	eventually(t, "10 deliveries", func() bool { return s.count() == 10 })
	all := s.got()
	r.finish(t, all[0], all[1], all[3], all[5], all[6], all[9])
	r.close(t)

	s = newSink()
	r = start(t, d, subscription("billing.profile", "a.b.c"), s)
	publish(t, d, message("a.b.c", "k", "10"))
	eventually(t, "11", func() bool { return strings.HasSuffix(s.bodies(), "10") })
	if got, want := s.bodies(), "2 4 7 8 10"; got != want {
		t.Fatalf("after a restart: got %s, want %s", got, want)
	}
	all = s.got()
	r.finish(t, all[1])
	r.close(t)

	s = newSink()
	start(t, d, subscription("billing.profile", "a.b.c"), s)
	eventually(t, "the rest", func() bool { return s.count() == 4 })
	if got, want := s.bodies(), "2 7 8 10"; got != want {
		t.Fatalf("after a second restart: got %s, want %s", got, want)
	}
}

func TestClosed(t *testing.T) {
	cluster := newCluster(t)
	d := newDriver(t, cluster.ListenAddrs())
	publish(t, d, message("a.b.c", "k", "1"))
	for range 2 {
		if err := d.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Publish(t.Context(), []driver.Message{message("a.b.c", "k", "1")}); !errors.Is(err, driver.ErrClosed) {
		t.Fatalf("Publish after Close: %v", err)
	}
	if _, err := d.Subscribe(t.Context(), subscription("x.y", "a.b.c"), newSink()); !errors.Is(err, driver.ErrClosed) {
		t.Fatalf("Subscribe after Close: %v", err)
	}
	if err := d.Check(t.Context()); !errors.Is(err, driver.ErrClosed) {
		t.Fatalf("Check after Close: %v", err)
	}
}
