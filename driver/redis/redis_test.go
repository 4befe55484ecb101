package redis

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/drivertest"
	"github.com/tidings-go/tidings/driver/redis/redistest"
)

func newDriver(t testing.TB, url string, change ...func(*Options)) *Driver {
	t.Helper()
	options := Options{Client: clientOption(t, url, nil)}
	for _, f := range change {
		f(&options)
	}
	d, err := New(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(context.Background()); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return d
}

func subscription(types ...string) driver.Subscription {
	return driver.Subscription{Name: "x.y", Channels: types, Types: types}
}

func message(body string) driver.Message {
	return driver.Message{Channel: "a.b.c", Type: "a.b.c", ID: body, Body: []byte(body)}
}

// Any other client sees the event type as channel and the body alone.
func TestWire(t *testing.T) {
	server := miniredis.RunT(t)
	d := newDriver(t, "redis://"+server.Addr(), func(o *Options) { o.Namespace = "shop" })
	other := server.NewSubscriber()
	defer other.Close()
	other.Subscribe("shop:a.b.c")
	published := make(chan error, 1)
	go func() { published <- d.Publish(t.Context(), []driver.Message{message(`{"n":1}`)}) }()
	got := <-other.Messages()
	if err := <-published; err != nil {
		t.Fatal(err)
	}
	if got.Channel != "shop:a.b.c" || got.Message != `{"n":1}` {
		t.Errorf("got %+v", got)
	}
	s := drivertest.NewSink()
	drivertest.Start(t, d, subscription("a.b.c", "d.e.f"), s)
	server.Publish("shop:d.e.f", `{"n":2}`)
	drivertest.Eventually(t, "it", func() bool { return s.Count() == 1 })
	if got := s.Got()[0]; got.Type != "d.e.f" || got.Channel != "d.e.f" || string(got.Body) != `{"n":2}` || got.Ref.Position() != "" {
		t.Errorf("got %+v", got)
	}
}

// After an outage of any length the consumer is there again by itself, and says how
// long the gap was. TIDINGS_TEST_OUTAGE=60s makes it a long one.
func TestOutage(t *testing.T) {
	t.Parallel()
	length := 5 * time.Second
	if text := os.Getenv("TIDINGS_TEST_OUTAGE"); text != "" {
		var err error
		if length, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	server := redistest.Start(t)
	d := newDriver(t, server.URL())
	s := drivertest.NewSink()
	drivertest.Start(t, d, subscription("a.b.c"), s)
	began := time.Now()
	server.Kill()
	drivertest.Eventually(t, "it is reported at once", func() bool { return len(s.Reports(driver.ReportOutage)) == 1 })
	if took := time.Since(began); took > time.Second {
		t.Errorf("reported after %v", took)
	}
	var failed *driver.PublishError
	if err := d.Publish(t.Context(), []driver.Message{message("lost")}); !errors.As(err, &failed) {
		t.Errorf("Publish: %v", err)
	}
	timer := time.NewTimer(length)
	<-timer.C
	server.Restart()
	ended := time.Now()
	drivertest.Eventually(t, "its end", func() bool { return len(s.Reports(driver.ReportRecovered)) == 1 })
	if late := time.Since(ended); late > 6*time.Second { // the interval, and a slow machine
		t.Errorf("%v until it was connected again", late)
	}
	if gap := s.Reports(driver.ReportRecovered)[0].Duration; gap < length || gap > time.Since(began) {
		t.Errorf("a gap of %v was reported", gap)
	} else {
		t.Logf("Redis was away for %v; the gap was %v", length, gap.Round(time.Millisecond))
	}
	drivertest.Eventually(t, "events flow", func() bool {
		if err := d.Publish(t.Context(), []driver.Message{message("after")}); err != nil {
			t.Logf("publish: %v", err)
		}
		return s.Count() > 0
	})
	if got := s.Got()[0]; string(got.Body) != "after" {
		t.Errorf("got %s", got.Body)
	}
}

// No more is received than may be in hand.
func TestBounds(t *testing.T) {
	server := miniredis.RunT(t)
	d := newDriver(t, "redis://"+server.Addr())
	bounded := subscription("a.b.c")
	bounded.MaxEvents = 10
	s := drivertest.NewSink()
	r := drivertest.Start(t, d, bounded, s)
	var messages []driver.Message
	for n := range 100 {
		messages = append(messages, message(fmt.Sprint(n)))
	}
	if err := d.Publish(t.Context(), messages); err != nil {
		t.Fatal(err)
	}
	drivertest.Eventually(t, "a pause", func() bool { return len(s.Reports(driver.ReportPaused)) == 1 })
	if n := s.Count(); n != 10 {
		t.Fatalf("%d in hand", n)
	}
	for s.Count() < 100 {
		had := s.Count()
		r.Finish(t, s.Got()...)
		drivertest.Eventually(t, "more", func() bool { return s.Count() > had })
	}
	if len(s.Reports(driver.ReportResumed)) == 0 {
		t.Error("not resumed")
	}
}

func TestChannelOf(t *testing.T) {
	for _, test := range []struct {
		channels, types []string
		eventType, want string
	}{
		{[]string{"a.b.c"}, []string{"a.b.c"}, "a.b.c", "a.b.c"},
		{[]string{"a.b"}, []string{"a.b.c", "a.b.d"}, "a.b.d", "a.b"},
		{[]string{"a.b", "x.y.z"}, []string{"a.b.c", "a.b.d", "x.y.z"}, "a.b.c", "a.b"},
		{[]string{"a.b", "x.y.z"}, []string{"a.b.c", "a.b.d", "x.y.z"}, "x.y.z", "x.y.z"},
	} {
		s := driver.Subscription{Channels: test.channels, Types: test.types}
		if got := s.ChannelOf(test.eventType); got != test.want {
			t.Errorf("%s of %v: %s, want %s", test.eventType, test.channels, got, test.want)
		}
	}
}

func TestOptions(t *testing.T) {
	_, err := New(Options{Namespace: "a b", MaxEvents: -1, ReconnectInterval: -1})
	if err == nil {
		t.Fatal("accepted")
	}
	for _, part := range []string{"redis: ", "InitAddress", "Namespace", "MaxEvents is -1", "ReconnectInterval"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("no %q in %v", part, err)
		}
	}
	server := miniredis.RunT(t)
	server.RequireAuth("secret")
	d := newDriver(t, "redis://:secret@"+server.Addr())
	if text := fmt.Sprintf("%v %+v %#v", d, d, d); strings.Contains(text, "secret") {
		t.Errorf("a secret is shown: %s", text)
	}
	huge := message("big")
	huge.Body = make([]byte, 1<<20+1)
	if err := d.Publish(t.Context(), []driver.Message{huge}); !errors.Is(err, driver.ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
	if err := d.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := d.Publish(t.Context(), []driver.Message{message("1")}); !errors.Is(err, driver.ErrClosed) {
		t.Errorf("Publish: %v", err)
	}
	if _, err := d.Subscribe(t.Context(), subscription("a.b.c"), drivertest.NewSink()); !errors.Is(err, driver.ErrClosed) {
		t.Errorf("Subscribe: %v", err)
	}
}
