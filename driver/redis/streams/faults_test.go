package streams

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/drivertest"
	"github.com/tidings-go/tidings/driver/redis/redistest"
)

type tickPayload struct {
	Number int `json:"number"`
}

var tickCounted = tidings.Define[tickPayload]("faults.tick.counted", 1, tidings.Repeatable)

// scene is a subscription and a publisher that go on through a fault.
type scene struct {
	mu        sync.Mutex
	confirmed map[string]time.Time // when the publish began
	unknown   int
	handled   map[string]int
	last      map[string]int // by aggregate
	disorder  int
	quit      context.CancelFunc // of the publisher
	published chan struct{}
	stop      context.CancelFunc
	done      sync.WaitGroup
}

const faultAggregates = 8

func startScene(t *testing.T, open func() *Driver) *scene {
	t.Helper()
	s := &scene{confirmed: make(map[string]time.Time), published: make(chan struct{}), handled: make(map[string]int), last: make(map[string]int)}
	quiet := &tidings.Options{Logger: slog.New(slog.DiscardHandler)}
	consuming := tidings.New(open(), quiet)
	consuming.Module("faults").Subscribe("count", &tidings.SubscribeOptions{StartAt: tidings.StartBeginning},
		tickCounted.On(func(_ context.Context, e tidings.Event[tickPayload]) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.handled[e.ID()]++
			if n := e.Payload().Number; s.handled[e.ID()] == 1 {
				if n < s.last[e.AggregateID()] {
					s.disorder++
				}
				s.last[e.AggregateID()] = n
			}
			return nil
		}))
	publishing := tidings.New(open(), quiet)
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	publishes, quit := context.WithCancel(ctx)
	s.quit = quit
	s.done.Go(func() {
		if err := consuming.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	s.done.Go(func() {
		defer close(s.published)
		for n := 1; publishes.Err() == nil; n++ {
			events := make([]tidings.DomainEvent, faultAggregates)
			for a := range events {
				events[a] = tickCounted.New(fmt.Sprint("aggregate-", a), tickPayload{n})
			}
			asking, cancel := context.WithTimeout(context.Background(), 3*time.Second)
			began := time.Now()
			err := publishing.Publish(asking, events...)
			cancel()
			s.mu.Lock()
			if err == nil {
				for _, e := range events {
					s.confirmed[e.ID()] = began
				}
			} else {
				s.unknown++
			}
			s.mu.Unlock()
			pause(publishes, time.Millisecond)
		}
		if err := publishing.Close(context.Background()); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	t.Cleanup(func() { stop(); s.done.Wait() })
	s.flows(t)
	return s
}

func (s *scene) counts() (published, missing, again, failed, disorder int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.confirmed {
		if s.handled[id] == 0 {
			missing++
		}
	}
	for _, times := range s.handled {
		again += times - 1
	}
	return len(s.confirmed), missing, again, s.unknown, s.disorder
}

// flows waits until what is published is handled.
func (s *scene) flows(t *testing.T) {
	t.Helper()
	s.mu.Lock()
	had := len(s.handled)
	s.mu.Unlock()
	drivertest.Eventually(t, "events flow", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.handled) >= had+100*faultAggregates
	})
}

// end stops the publisher and says what became of its events.
func (s *scene) end(t *testing.T, fault string) {
	t.Helper()
	s.flows(t)
	s.quit()
	<-s.published
	drivertest.Eventually(t, "the rest is handled", func() bool {
		_, missing, _, _, _ := s.counts()
		return missing == 0
	})
	s.stop()
	s.done.Wait()
	published, missing, again, failed, disorder := s.counts()
	t.Logf("%s: %d events confirmed, %d of them lost, %d handled again, %d out of order, %d publishes of %d events failed",
		fault, published, missing, again, disorder, failed, faultAggregates)
	if missing > 0 || disorder > 0 {
		t.Errorf("%d of %d events lost, %d out of order", missing, published, disorder)
	}
}

func opens(t *testing.T, server *redistest.Server) func() *Driver {
	return func() *Driver {
		d, err := New(Options{Client: clientOption(t, server.URL(), nil), LeaseTime: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
}

func TestFaultSleep(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := startScene(t, opens(t, server))
	if err := server.Do("DEBUG", "SLEEP", "2").Error(); err != nil { // twice as long as a lease
		t.Fatal(err)
	}
	s.end(t, "DEBUG SLEEP 2")
}

func TestFaultKilledClients(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := startScene(t, opens(t, server))
	for range 5 {
		if err := server.Do("CLIENT", "KILL", "TYPE", "normal").Error(); err != nil {
			t.Fatal(err)
		}
		s.flows(t)
	}
	s.end(t, "CLIENT KILL, five times")
}

func TestFaultRestart(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	s := startScene(t, opens(t, server))
	server.Kill()
	pause(t.Context(), 500*time.Millisecond)
	server.Restart()
	s.end(t, "kill -9 and restart, appendfsync always")
}

func TestFaultFlush(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := startScene(t, opens(t, server))
	if err := server.Do("FLUSHALL").Error(); err != nil {
		t.Fatal(err)
	}
	flushed := time.Now()
	s.flows(t)
	// What was stored and not handled yet is gone with the streams.
	gone := 0
	s.mu.Lock()
	for id, began := range s.confirmed {
		if s.handled[id] == 0 && began.Before(flushed) {
			delete(s.confirmed, id)
			gone++
		}
	}
	s.mu.Unlock()
	t.Logf("FLUSHALL took %d events with it that were not handled yet", gone)
	s.end(t, "FLUSHALL, of what was published after it")
}

// On a cluster the shards lie on three nodes, and the keys of a command on one.
func TestCluster(t *testing.T) {
	t.Parallel()
	nodes := redistest.Cluster(t)
	var addresses []string
	for _, node := range nodes {
		address, err := url.Parse(node.URL())
		if err != nil {
			t.Fatal(err)
		}
		addresses = append(addresses, address.Host)
	}
	open := func() *Driver {
		option := clientOption(t, nodes[0].URL(), nil)
		option.InitAddress = addresses
		d, err := New(Options{Client: option, LeaseTime: time.Second, Retention: time.Millisecond, TrimInterval: 100 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	s := startScene(t, open)
	used := 0
	for _, node := range nodes {
		keys, err := node.Do("KEYS", "events:faults.tick.counted:*").AsStrSlice()
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range keys {
			if !strings.HasSuffix(key, ":groups") && !strings.HasSuffix(key, ":shards") {
				used++
				break
			}
		}
	}
	if used != 3 {
		t.Errorf("streams lie on %d of 3 nodes", used)
	}
	s.end(t, "a cluster of three nodes")
	d := open()
	defer func() {
		if err := d.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	if err := d.PutDeadLetter(t.Context(), driver.DeadLetter{Channel: "faults.tick.counted", Subscription: "faults.count", Body: []byte("{}")}); err != nil {
		t.Error(err)
	}
	if err := d.prepare(t.Context(), "faults.tick.counted"); err != nil {
		t.Fatal(err)
	}
	if err := d.trim(t.Context()); err != nil {
		t.Errorf("trim: %v", err)
	}
}
