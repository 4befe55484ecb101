package outbox_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/outbox"
)

// slowQueue is a broker that takes one event of an aggregate after the other, and
// says of what it had not come to when the context ended that it is not stored.
type slowQueue struct {
	*broker
	each time.Duration
}

func (b *slowQueue) Publish(ctx context.Context, messages []driver.Message) error {
	results := make([]driver.PublishResult, len(messages))
	failed := false
	for n, m := range messages {
		select {
		case <-ctx.Done():
			results[n], failed = driver.PublishResult{State: driver.NotStored, Err: fmt.Errorf("not sent: %w", context.Cause(ctx))}, true
			continue
		case <-time.After(b.each):
		}
		results[n].State = driver.Stored
		b.set(func() { b.took = append(b.took, m) })
	}
	if failed {
		return &driver.PublishError{Results: results}
	}
	return nil
}

func TestWhatASendHasNotComeToIsNextAndIsNotHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const lease, rows = 2 * time.Second, 300
		d, s := &slowQueue{broker: newBroker(), each: lease / 50}, newTable()
		all := &tx{}
		for n := range rows {
			all.rows = append(all.rows, row("a.b", "hot", n, 1))
		}
		s.commit(all)
		_, _, stop := running(t, d, s, outbox.Options{LeaseTime: lease, PollInterval: time.Hour})
		after(rows / 50 * lease * 2)
		held, _ := s.Held(t.Context(), 0, 10)
		ids := d.ids()
		if len(held) > 0 || len(ids) != rows {
			t.Fatalf("%d of %d sent, held %+v", len(ids), rows, held)
		}
		for n, id := range ids {
			if id != fmt.Sprintf("hot-%d", n) {
				t.Fatalf("%s was sent as number %d", id, n)
			}
		}
		stop()
	})
}

// silentTable is a table whose leases end, and that can be silent for one of its
// users: what that one asks has no answer, whatever its context says.
type silentTable struct {
	*table
	ever chan struct{} // closed at the end of the test

	mu      sync.Mutex
	hangs   bool
	renewed map[string]time.Time
	shared  *silentTable // has the times
}

func (s *silentTable) silence() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hangs = true
}

func (s *silentTable) hang() {
	s.mu.Lock()
	hangs := s.hangs
	s.mu.Unlock()
	if hangs {
		<-s.ever
	}
}

func (s *silentTable) Pending(ctx context.Context, look outbox.Look) ([]outbox.Row, error) {
	s.hang()
	return s.table.Pending(ctx, look)
}

func (s *silentTable) Renew(ctx context.Context, group, holder string, ttl time.Duration) ([]driver.Lease, error) {
	s.shared.touch(holder)
	return s.table.Renew(ctx, group, holder, ttl)
}

func (s *silentTable) touch(holder string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.renewed[holder] = time.Now()
}

// expire ends what was not renewed, and renews the caller's.
func (s *silentTable) expire(holder string, ttl time.Duration) {
	s.shared.mu.Lock()
	defer s.shared.mu.Unlock()
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	for name, of := range s.holders {
		if time.Since(s.shared.renewed[of]) > ttl {
			delete(s.holders, name)
		}
	}
	for of := range s.members {
		if time.Since(s.shared.renewed[of]) > ttl {
			delete(s.members, of)
		}
	}
	s.shared.renewed[holder] = time.Now()
}

func (s *silentTable) Acquire(ctx context.Context, group, holder string, names []string, limit int, ttl time.Duration) ([]driver.Lease, error) {
	s.expire(holder, ttl)
	return s.table.Acquire(ctx, group, holder, names, limit, ttl)
}

func (s *silentTable) Join(ctx context.Context, group string, member driver.Member, ttl time.Duration) ([]driver.Member, error) {
	s.expire(member.Holder, ttl)
	return s.table.Join(ctx, group, member, ttl)
}

// Its renewals go over connections that work: only what the workers ask has no
// answer.
func TestARelayWhoseWorkersHangLeavesItsSlotsToAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const lease = 3 * time.Second
		ever := make(chan struct{})
		base := newTable()
		shared := &silentTable{table: base, ever: ever, renewed: map[string]time.Time{}}
		shared.shared = shared
		one := &silentTable{table: base, ever: ever, shared: shared}
		two := &silentTable{table: base, ever: ever, shared: shared}
		var mu sync.Mutex
		sent := map[string]int{}
		run := func(name string, q outbox.Queue) (*outbox.Relay, func() time.Duration) {
			forward := func(_ context.Context, messages []driver.Message) error {
				mu.Lock()
				defer mu.Unlock()
				sent[name] += len(messages)
				return nil
			}
			r, err := outbox.NewRelay(q, forward, &outbox.Options{LeaseTime: lease, PollInterval: 200 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan struct{})
			go func() { _ = r.Run(ctx); close(done) }()
			return r, func() time.Duration {
				began := time.Now()
				cancel()
				<-done
				return time.Since(began)
			}
		}
		ill, stopOne := run("one", one)
		after(5 * time.Second)
		_, stopTwo := run("two", two)
		after(5 * time.Second)
		one.silence()
		after(lease)
		if ill.Outage() == 0 {
			t.Error("the relay says that it gets on, and its workers hang")
		}
		after(10 * time.Second)
		all := &tx{}
		for n := range 200 {
			all.rows = append(all.rows, row("a.b", fmt.Sprint("k", n), 0, 1))
		}
		base.commit(all)
		after(time.Second)
		mu.Lock()
		if sent["two"] != 200 {
			t.Errorf("sent %v: the sound relay sends all", sent)
		}
		mu.Unlock()
		if took := stopOne(); took > 4*lease {
			t.Errorf("the relay that hangs ended after %v", took)
		}
		stopTwo()
		close(ever)
	})
}
