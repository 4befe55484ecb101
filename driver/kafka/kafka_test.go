package kafka

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/drivertest"
	"github.com/tidings-go/tidings/internal/testtime"
)

// patience is how long a test waits for something that is sure to come.
var patience = testtime.Patience(30 * time.Second)

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
	return strings.Split(drivertest.Server(t, variable), ",")
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
	s := drivertest.NewSink()
	r := drivertest.Start(t, d, subscription("billing.profile", "identity.user.created"), s)
	var messages []driver.Message
	for key := range 20 {
		messages = append(messages, numbered("identity.user.created", fmt.Sprint("user-", key), 0, 10)...)
	}
	publish(t, d, messages...)
	drivertest.Eventually(t, "200 deliveries", func() bool { return s.Count() == 200 })
	next := make(map[string]int)
	for _, got := range s.Got() {
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
	r.Finish(t, s.Got()...)
	r.End(t)

	again := drivertest.NewSink()
	drivertest.Start(t, d, subscription("billing.profile", "identity.user.created"), again)
	publish(t, d, message("identity.user.created", "user-1", "last"))
	drivertest.Eventually(t, "one delivery", func() bool { return again.Count() > 0 })
	if got := again.Bodies(); got != "last" {
		t.Fatalf("after a restart: %s", got)
	}
}

func TestRestartDeliversOnlyUnfinished(t *testing.T) {
	cluster := newCluster(t)
	d := newDriver(t, cluster.ListenAddrs(), single)
	s := drivertest.NewSink()
	r := drivertest.Start(t, d, subscription("billing.profile", "a.b.c"), s)
	publish(t, d, numbered("a.b.c", "k", 0, 10)...)
	drivertest.Eventually(t, "10 deliveries", func() bool { return s.Count() == 10 })
	all := s.Got()
	r.Finish(t, all[0], all[1], all[3], all[5], all[6], all[9])
	r.End(t)

	s = drivertest.NewSink()
	r = drivertest.Start(t, d, subscription("billing.profile", "a.b.c"), s)
	publish(t, d, message("a.b.c", "k", "10"))
	drivertest.Eventually(t, "11", func() bool { return strings.HasSuffix(s.Bodies(), "10") })
	if got, want := s.Bodies(), "2 4 7 8 10"; got != want {
		t.Fatalf("after a restart: got %s, want %s", got, want)
	}
	all = s.Got()
	r.Finish(t, all[1])
	r.End(t)

	s = drivertest.NewSink()
	drivertest.Start(t, d, subscription("billing.profile", "a.b.c"), s)
	drivertest.Eventually(t, "the rest", func() bool { return s.Count() == 4 })
	if got, want := s.Bodies(), "2 7 8 10"; got != want {
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
	if _, err := d.Subscribe(t.Context(), subscription("x.y", "a.b.c"), drivertest.NewSink()); !errors.Is(err, driver.ErrClosed) {
		t.Fatalf("Subscribe after Close: %v", err)
	}
	if err := d.Check(t.Context()); !errors.Is(err, driver.ErrClosed) {
		t.Fatalf("Check after Close: %v", err)
	}
}
