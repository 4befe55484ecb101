package sqs

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver/drivertest"
	"github.com/tidings-go/tidings/driver/sqs/sqstest"
)

// The end comes in time although a handler is stuck and more was received than
// anybody will take: what is left goes back to the queue. See docs/peer-defects.md.
func TestPeerDefect19TheEndDoesNotHang(t *testing.T) {
	server := sqstest.Start(t)
	options := quiet()
	options.DrainTimeout = 100 * time.Millisecond
	b := tidings.New(newDriver(t, server.URL(), func(o *Options) { o.VisibilityTimeout, o.MaxEvents = time.Minute, 20 }), options)
	started, release := make(chan struct{}, 100), make(chan struct{})
	defer close(release)
	b.Module("counts").Subscribe("stuck", &tidings.SubscribeOptions{Concurrency: 2}, counted.On(func(context.Context, tidings.Event[countPayload]) error {
		started <- struct{}{}
		<-release // whatever its context says
		return nil
	}))
	var events []tidings.DomainEvent
	for n := range 50 {
		events = append(events, counted.New(fmt.Sprint(n), countPayload{n}))
	}
	if err := b.Publish(t.Context(), events...); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	<-started
	<-started
	drivertest.Eventually(t, "a full queue in memory", func() bool { return server.Calls("ReceiveMessage") >= 2 })
	began := time.Now()
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
		t.Logf("Run returned after %v", time.Since(began).Round(time.Millisecond))
	case <-time.After(20 * time.Second):
		t.Fatal("Run does not return")
	}
}
