package sqs

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/drivertest"
	"github.com/tidings-go/tidings/driver/sqs/sqstest"
)

// running runs the consumer of one subscription until the test ends.
func running(t *testing.T, d *Driver, s driver.Subscription, sink *drivertest.Sink) driver.Consumer {
	t.Helper()
	c, err := d.Subscribe(t.Context(), s, sink)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var run sync.WaitGroup
	run.Go(func() {
		if err := c.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(func() {
		stop()
		run.Wait()
		if err := c.Close(context.Background()); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return c
}

func onChannel(eventType, key, body string) driver.Message {
	m := message(eventType, key, body)
	m.Channel = "shared.channel"
	return m
}

// What only another release handles is never finished here: the engine is given it
// at once and leaves it to that release.
func TestWhatAnotherReleaseHandlesIsNotGivenUp(t *testing.T) {
	server := sqstest.Start(t)
	d := newDriver(t, server.URL())
	if _, err := d.Declare(t.Context(), "x.y", []driver.Declaration{{Channel: "shared.channel", Type: "a.b.c"}, {Channel: "shared.channel", Type: "d.e.f"}}); err != nil {
		t.Fatal(err)
	}
	sink := drivertest.NewSink()
	c := running(t, d, driver.Subscription{Name: "x.y", Channels: []string{"shared.channel"}, Types: []string{"a.b.c"}}, sink)
	publish(t, d, onChannel("d.e.f", "k", "another's"), onChannel("a.b.c", "k", "behind it"))
	drivertest.Eventually(t, "the engine is given what it lacks", func() bool { return sink.Count() >= 1 })
	got := sink.Got()[0]
	if string(got.Body) != "another's" || got.GiveUp != "" || got.Channel != "shared.channel" {
		t.Errorf("got %+v", got)
	}
	if err := c.Settle(t.Context(), drivertest.Finished(sink.Got()...)); err != nil {
		t.Fatal(err)
	}
}

// While SQS does not say what other releases handle, nothing of a strange type is
// finished.
func TestWithoutAnAnswerNothingStrangeIsFinished(t *testing.T) {
	server := sqstest.Start(t)
	d := newDriver(t, server.URL(), func(o *Options) { o.UnhandledGrace = -1 })
	if _, err := d.Declare(t.Context(), "x.y", []driver.Declaration{{Channel: "shared.channel", Type: "a.b.c"}}); err != nil {
		t.Fatal(err)
	}
	server.Fail(func(action string) error {
		if action == "ListQueueTags" {
			return &sqstest.Error{Code: "ThrottlingException", Message: "too many calls"}
		}
		return nil
	})
	sink := drivertest.NewSink()
	running(t, d, driver.Subscription{Name: "x.y", Channels: []string{"shared.channel"}, Types: []string{"a.b.c"}}, sink)
	publish(t, d, onChannel("d.e.f", "k", "strange"))
	drivertest.Eventually(t, "it was received", func() bool { return server.Calls("ListQueueTags") > 1 })
	publish(t, d, onChannel("a.b.c", "other", "known"))
	drivertest.Eventually(t, "the rest goes on", func() bool { return sink.Count() == 1 })
	if got := sink.Bodies(); got != "known" {
		t.Errorf("got %q", got)
	}
	server.Fail(nil)
	drivertest.Eventually(t, "it goes on when SQS answers", func() bool { return sink.Count() == 2 })
}

func TestDeclarationsThatDoNotFit(t *testing.T) {
	d := newDriver(t, sqstest.Start(t).URL())
	many := make([]driver.Declaration, mostDeclared+1)
	for n := range many {
		many[n] = driver.Declaration{Channel: "c", Type: fmt.Sprintf("a.b.c%d", n)}
	}
	if _, err := d.Declare(t.Context(), "x.y", many); err == nil || !strings.Contains(err.Error(), "x.y") || !strings.Contains(err.Error(), "forget-type") {
		t.Errorf("too many types: %v", err)
	}
	long := driver.Declaration{Channel: strings.Repeat("c", mostTagValue), Type: "a.b.c"}
	if _, err := d.Declare(t.Context(), "x.y", []driver.Declaration{long}); err == nil || !strings.Contains(err.Error(), "shorter name") {
		t.Errorf("a long name: %v", err)
	}
	never := newDriver(t, sqstest.Start(t).URL(), func(o *Options) { o.Provision = ProvisionNever })
	if _, err := never.Declare(t.Context(), "x.y", many[:1]); err == nil || !strings.Contains(err.Error(), "tidings provision") {
		t.Errorf("nothing may be made: %v", err)
	}
	if all, err := never.Declared(t.Context(), "x.y"); err != nil || all != nil {
		t.Errorf("an unknown subscription: %v, %v", all, err)
	}
	for _, name := range []string{"a.b-c", "a-b.c", strings.Repeat("a", 100) + ".b"} {
		if queue := d.DeclarationsName(name); len(queue) > mostQueueName {
			t.Errorf("%s: %q is too long", name, queue)
		}
	}
	if d.DeclarationsName("a.b-c") == d.DeclarationsName("a-b.c") {
		t.Error("two subscriptions share a record")
	}
}
