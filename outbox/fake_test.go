package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/outbox"
)

type payload struct {
	Name string `json:"name"`
}

var (
	created = tidings.Define[payload]("users.user.created", 1, tidings.Once)
	foreign = tidings.Define[payload]("mail.letter.sent", 1, tidings.Once)
)

// tx is a transaction of the table.
type tx struct {
	rows []outbox.Row
	over bool
}

// table is an outbox in memory.
type table struct {
	mu       sync.Mutex
	sequence int64
	rows     []outbox.Row
	held     map[string]time.Time
	holders  map[string]string // of leases
	epochs   map[string]int64
	members  map[string]driver.Member
	down     bool
	deaf     bool // to those who renew
	wakes    []chan struct{}
}

func newTable() *table {
	return &table{held: map[string]time.Time{}, holders: map[string]string{}, epochs: map[string]int64{}, members: map[string]driver.Member{}}
}

var errDown = errors.New("connection refused")

func (s *table) lock() error {
	s.mu.Lock()
	if s.down {
		s.mu.Unlock()
		return errDown
	}
	return nil
}

func (s *table) commit(t *tx) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t.over = true
	for _, r := range t.rows {
		s.sequence++
		r.Sequence, r.CreatedAt = s.sequence, time.Now()
		s.rows = append(s.rows, r)
	}
	for _, wake := range s.wakes {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
}

func (s *table) Add(_ context.Context, t *tx, rows []outbox.Row) error {
	if t.over {
		return errors.New("the transaction is over")
	}
	t.rows = append(t.rows, rows...)
	return nil
}

func (s *table) Serialize(context.Context, *tx, string, string) error { return nil }

func (s *table) Pending(_ context.Context, look outbox.Look) (found []outbox.Row, err error) {
	if err := s.lock(); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	each := map[int]int{}
	for _, r := range s.rows {
		if len(found) < look.Limit && each[r.Slot] < look.Each && slices.Contains(look.Slots, r.Slot) && !slices.Contains(look.Except, r.Channel) &&
			!time.Now().Before(s.held[r.Channel+"\n"+r.AggregateID]) {
			each[r.Slot]++
			found = append(found, r)
		}
	}
	return found, nil
}

func (s *table) has(group, holder string, leases []driver.Lease, slot int) bool {
	return slices.ContainsFunc(leases, func(l driver.Lease) bool {
		name := group + "/" + l.Name
		return l.Name == outbox.LeaseName(slot) && s.holders[name] == holder && s.epochs[name] == l.Epoch
	})
}

func (s *table) Sent(_ context.Context, group, holder string, leases []driver.Lease, rows []outbox.Row) (n int, err error) {
	if err := s.lock(); err != nil {
		return 0, err
	}
	defer s.mu.Unlock()
	s.rows = slices.DeleteFunc(s.rows, func(r outbox.Row) bool {
		gone := slices.ContainsFunc(rows, func(sent outbox.Row) bool { return sent.Sequence == r.Sequence }) && s.has(group, holder, leases, r.Slot)
		if gone {
			n++
		}
		return gone
	})
	return n, nil
}

func (s *table) Hold(_ context.Context, _, _ string, _ []driver.Lease, refused []outbox.Refused) error {
	if err := s.lock(); err != nil {
		return err
	}
	defer s.mu.Unlock()
	for _, r := range refused {
		s.held[r.Row.Channel+"\n"+r.Row.AggregateID] = time.Now().Add(r.Wait)
		for n := range s.rows {
			if s.rows[n].Sequence == r.Row.Sequence {
				s.rows[n].Attempts++
				s.rows[n].Failure = r.Failure
			}
		}
	}
	return nil
}

func (s *table) Held(context.Context, int64, int) ([]outbox.Held, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []outbox.Held
	for _, r := range s.rows {
		if wait := time.Until(s.held[r.Channel+"\n"+r.AggregateID]); r.Attempts > 0 {
			all = append(all, outbox.Held{Row: r, Wait: max(0, wait)})
		}
	}
	return all, nil
}

func (s *table) Retry(_ context.Context, sequence int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.rows {
		if r.Sequence == sequence && r.Attempts > 0 {
			delete(s.held, r.Channel+"\n"+r.AggregateID)
			return nil
		}
	}
	return outbox.ErrNotHeld
}

func (s *table) Discard(ctx context.Context, sequence int64, _ string) error {
	if err := s.Retry(ctx, sequence); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rows = slices.DeleteFunc(s.rows, func(r outbox.Row) bool { return r.Sequence == sequence })
	return nil
}

func (*table) Discarded(context.Context, int64, int) ([]outbox.Discarded, error) { return nil, nil }

func (s *table) Status(context.Context) (outbox.Status, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return outbox.Status{Backlog: int64(len(s.rows))}, nil
}

func (s *table) Wake(ctx context.Context) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	wake := make(chan struct{}, 1)
	s.wakes = append(s.wakes, wake)
	context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.wakes = slices.DeleteFunc(s.wakes, func(c chan struct{}) bool { return c == wake })
		close(wake)
	})
	return wake
}

func (s *table) Clean(context.Context, time.Duration, int) (int, error) { return 0, nil }

func (s *table) Join(_ context.Context, _ string, member driver.Member, _ time.Duration) ([]driver.Member, error) {
	if err := s.lock(); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	s.members[member.Holder] = member
	return slices.Collect(maps.Values(s.members)), nil
}

func (s *table) Leave(_ context.Context, _, holder string) error {
	if err := s.lock(); err != nil {
		return err
	}
	defer s.mu.Unlock()
	delete(s.members, holder)
	for name, of := range s.holders {
		if of == holder {
			delete(s.holders, name)
		}
	}
	return nil
}

func (s *table) Acquire(_ context.Context, group, holder string, names []string, limit int, _ time.Duration) (taken []driver.Lease, err error) {
	if err := s.lock(); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	for _, name := range names {
		if key := group + "/" + name; s.holders[key] == "" && len(taken) < limit {
			s.epochs[key]++
			s.holders[key] = holder
			taken = append(taken, driver.Lease{Name: name, Epoch: s.epochs[key]})
		}
	}
	return taken, nil
}

func (s *table) Renew(_ context.Context, group, holder string, _ time.Duration) (kept []driver.Lease, err error) {
	if err := s.lock(); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	if s.deaf {
		return nil, errDown
	}
	for name, of := range s.holders {
		if of == holder && strings.HasPrefix(name, group+"/") {
			kept = append(kept, driver.Lease{Name: strings.TrimPrefix(name, group+"/"), Epoch: s.epochs[name]})
		}
	}
	return kept, nil
}

func (*table) KeptSince() time.Time { return time.Time{} }

func (s *table) Release(_ context.Context, group, holder string, names []string) error {
	if err := s.lock(); err != nil {
		return err
	}
	defer s.mu.Unlock()
	for _, name := range names {
		if s.holders[group+"/"+name] == holder {
			delete(s.holders, group+"/"+name)
		}
	}
	return nil
}

// steal gives every slot to somebody else.
func (s *table) steal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range s.holders {
		s.holders[name] = "a thief"
		s.epochs[name]++
	}
}

// broker is a driver that a relay sends to.
type broker struct {
	mu      sync.Mutex
	took    []driver.Message
	calls   int
	takes   time.Duration          // of one call
	max     int                    // bytes of a body
	plain   bool                   // does not say which one was too large
	down    map[string]bool        // channels, "" for all
	flying  map[string]int         // aggregates in calls that are under way
	overlap int                    // calls that had one of them
	before  func([]driver.Message) // a call
	within  func(context.Context)  // its context
}

func (b *broker) Name() string { return "fake" }
func (b *broker) Features() driver.Features {
	return driver.Features{Durable: true, Ordered: true, Headers: true}
}
func (b *broker) Close(context.Context) error { return nil }
func (b *broker) Subscribe(context.Context, driver.Subscription, driver.Sink) (driver.Consumer, error) {
	return nil, errors.New("it takes no subscription")
}

func (b *broker) Publish(ctx context.Context, messages []driver.Message) error {
	if b.within != nil {
		b.within(ctx)
	}
	if b.before != nil {
		b.before(messages)
	}
	b.mu.Lock()
	b.calls++
	for _, m := range messages {
		if b.flying[m.Key] > 0 {
			b.overlap++
		}
	}
	for _, m := range messages {
		b.flying[m.Key]++
	}
	b.mu.Unlock()
	time.Sleep(b.takes) //nolint:forbidigo // inside synctest: no real time
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range messages {
		b.flying[m.Key]--
	}
	if b.down[""] {
		return errDown
	}
	results := make([]driver.PublishResult, len(messages))
	failed := false
	for n, m := range messages {
		if b.max > 0 && len(m.Body) > b.max {
			if b.plain {
				return driver.ErrTooLarge
			}
			results[n].Err, failed = driver.ErrTooLarge, true
		}
	}
	if failed { // nothing is sent then
		for n := range results {
			results[n].State = driver.NotStored
			if results[n].Err == nil {
				results[n].Err = errors.New("another one was refused")
			}
		}
		return &driver.PublishError{Results: results}
	}
	for n, m := range messages {
		if b.down[m.Channel] {
			results[n], failed = driver.PublishResult{State: driver.NotStored, Err: errDown}, true
			continue
		}
		results[n].State = driver.Stored
		b.took = append(b.took, m)
	}
	if failed {
		return &driver.PublishError{Results: results}
	}
	return nil
}

func (b *broker) ids() (all []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range b.took {
		all = append(all, m.ID)
	}
	return all
}

func (b *broker) tries() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.calls
}

func (b *broker) set(change func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change()
}

func newBroker() *broker { return &broker{down: map[string]bool{}, flying: map[string]int{}} }

func bus(d driver.Driver, options tidings.Options) *tidings.Bus {
	options.Logger = slog.New(slog.DiscardHandler)
	return tidings.New(d, &options)
}

// running starts a bus with an outbox over the table.
func running(t *testing.T, d driver.Driver, s *table, options outbox.Options) (*tidings.Bus, *outbox.Box[*tx], func()) {
	t.Helper()
	b := bus(d, tidings.Options{})
	options.Logger = slog.New(slog.DiscardHandler)
	box, err := outbox.New(b, s, &options)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	if err := b.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	stop := func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(stop)
	return b, box, stop
}

func row(channel, aggregate string, n int, size int) outbox.Row {
	return outbox.Row{
		Slot: outbox.SlotOf(channel, aggregate), ID: fmt.Sprintf("%s-%d", aggregate, n), Channel: channel, AggregateID: aggregate, Type: channel,
		Headers: driver.Headers{{Name: "eventType", Value: channel}}, Payload: []byte(`{"n":"` + strings.Repeat("x", size) + `"}`),
	}
}

// after lets a time pass in which everything that is due happens.
func after(d time.Duration) {
	time.Sleep(d) //nolint:forbidigo // inside synctest: no real time
	synctest.Wait()
}
