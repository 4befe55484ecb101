package drivertest

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/internal/testtime"
)

// sinkPatience is how long the helpers for a driver's own tests wait for something
// that is sure to come.
func sinkPatience() time.Duration { return testtime.Patience(time.Minute) }

// Sink is an engine that does nothing by itself, for a driver's own tests. All
// methods may be called at once.
type Sink struct {
	once       sync.Once
	joined     chan struct{}
	mu         sync.Mutex
	onDeliver  func(deliveries []driver.Delivery)
	onRevoke   func(ctx context.Context, sources []driver.Source)
	deliveries []driver.Delivery
	reports    []driver.Report
	lost       []driver.Source
	revoked    []driver.Source
}

var _ driver.Sink = (*Sink)(nil)

// NewSink makes a sink that was told nothing.
func NewSink() *Sink { return &Sink{joined: make(chan struct{})} }

// OnDeliver makes the sink call f with every later delivery.
func (s *Sink) OnDeliver(f func(deliveries []driver.Delivery)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onDeliver = f
}

// OnRevoke makes the sink call f when sources are given up, before Revoke returns.
func (s *Sink) OnRevoke(f func(ctx context.Context, sources []driver.Source)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onRevoke = f
}

// Joined implements [driver.Sink].
func (s *Sink) Joined() { s.once.Do(func() { close(s.joined) }) }

// Deliver implements [driver.Sink].
func (s *Sink) Deliver(_ context.Context, deliveries []driver.Delivery) {
	s.mu.Lock()
	s.deliveries = append(s.deliveries, deliveries...)
	f := s.onDeliver
	s.mu.Unlock()
	if f != nil {
		f(deliveries)
	}
}

// Revoke implements [driver.Sink].
func (s *Sink) Revoke(ctx context.Context, sources []driver.Source) {
	s.mu.Lock()
	s.revoked = append(s.revoked, sources...)
	f := s.onRevoke
	s.mu.Unlock()
	if f != nil {
		f(ctx, sources)
	}
}

// Lose implements [driver.Sink].
func (s *Sink) Lose(sources []driver.Source) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost = append(s.lost, sources...)
}

// Report implements [driver.Sink].
func (s *Sink) Report(r driver.Report) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reports = append(s.reports, r)
}

// Count is how many deliveries came.
func (s *Sink) Count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.deliveries)
}

// Got returns what was delivered, in order.
func (s *Sink) Got() []driver.Delivery {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]driver.Delivery(nil), s.deliveries...)
}

// Bodies returns the bodies of what was delivered, with a space between.
func (s *Sink) Bodies() string {
	var all []string
	for _, d := range s.Got() {
		all = append(all, string(d.Body))
	}
	return strings.Join(all, " ")
}

// Reports returns the reports of a kind.
func (s *Sink) Reports(kind driver.ReportKind) []driver.Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []driver.Report
	for _, r := range s.reports {
		if r.Kind == kind {
			found = append(found, r)
		}
	}
	return found
}

// Lost returns the sources that were lost.
func (s *Sink) Lost() []driver.Source {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]driver.Source(nil), s.lost...)
}

// Revoked returns the sources that were revoked.
func (s *Sink) Revoked() []driver.Source {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]driver.Source(nil), s.revoked...)
}

// Running is a consumer whose Run is under way.
type Running struct {
	driver.Consumer
	Sink *Sink

	stop   context.CancelFunc
	err    chan error
	closed bool
}

// Start subscribes, starts Run and waits until the consumer joined. The test's end
// closes it.
func Start(t testing.TB, d driver.Driver, s driver.Subscription, sink *Sink) *Running {
	t.Helper()
	c, err := d.Subscribe(t.Context(), s, sink)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	r := &Running{Consumer: c, Sink: sink, stop: stop, err: make(chan error, 1)}
	go func() { r.err <- c.Run(ctx) }()
	t.Cleanup(func() { r.End(t) })
	select {
	case <-sink.joined:
	case err := <-r.err:
		r.err <- nil
		t.Fatalf("Run ended before it joined: %v", err)
	case <-time.After(sinkPatience()):
		t.Fatal("not joined")
	}
	return r
}

// StopRun ends Run and leaves the consumer open.
func (r *Running) StopRun(t testing.TB) {
	t.Helper()
	r.stop()
	select {
	case err := <-r.err:
		r.err <- nil
		if err != nil {
			t.Errorf("Run: %v", err)
		}
	case <-time.After(sinkPatience()):
		t.Error("Run does not end")
	}
}

// End ends Run and closes the consumer, as an engine does at its end. A second
// call does nothing.
func (r *Running) End(t testing.TB) {
	t.Helper()
	if r.closed {
		return
	}
	r.closed = true
	r.StopRun(t)
	ctx, cancel := context.WithTimeout(context.Background(), sinkPatience())
	defer cancel()
	if err := r.Close(ctx); err != nil {
		t.Errorf("Close: %v", err)
	}
}

// Finish settles deliveries as finished.
func (r *Running) Finish(t testing.TB, deliveries ...driver.Delivery) {
	t.Helper()
	if err := r.Settle(t.Context(), Finished(deliveries...)); err != nil {
		t.Fatalf("Settle: %v", err)
	}
}

// Finished is the settlement of deliveries that were handled.
func Finished(deliveries ...driver.Delivery) []driver.Settlement {
	var all []driver.Settlement
	for _, d := range deliveries {
		all = append(all, driver.Settlement{Ref: d.Ref, Source: d.Source, Outcome: driver.Finished})
	}
	return all
}

// Eventually waits for a condition.
func Eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(sinkPatience())
	look := time.NewTicker(2 * time.Millisecond)
	defer look.Stop()
	for !condition() {
		select {
		case <-look.C:
		case <-deadline:
			t.Fatalf("not within %v: %s", sinkPatience(), what)
		}
	}
}

// Server returns the address in an environment variable. Without it the test is
// skipped, or fails where TIDINGS_REQUIRE_BROKERS is 1.
func Server(t testing.TB, variable string) string {
	t.Helper()
	value := os.Getenv(variable)
	if value == "" {
		if os.Getenv("TIDINGS_REQUIRE_BROKERS") == "1" {
			t.Fatalf("%s is not set, and TIDINGS_REQUIRE_BROKERS=1", variable)
		}
		t.Skipf("%s is not set: no such broker (scripts/brokers up starts one)", variable)
	}
	return value
}

// Line is the network between drivers and their broker, which can be cut: give
// Dial to the clients, and Interrupt to [Broker].
type Line struct {
	mu   sync.Mutex
	down bool
	open []net.Conn
}

// Dial connects unless the line is cut.
func (l *Line) Dial(ctx context.Context, network, host string) (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.down {
		return nil, &net.OpError{Op: "dial", Net: network, Err: errors.New("the line is cut")}
	}
	c, err := (&net.Dialer{}).DialContext(ctx, network, host)
	if err == nil {
		l.open = append(l.open, c)
	}
	return c, err
}

// Interrupt cuts the line, and every connection with it, until restore is called.
func (l *Line) Interrupt(testing.TB) (restore func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = true
	for _, c := range l.open {
		_ = c.Close()
	}
	l.open = nil
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.down = false
	}
}
