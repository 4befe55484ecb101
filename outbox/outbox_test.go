package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/codec"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/memory"
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
	members  map[string]bool
	down     bool
	wakes    []chan struct{}
}

func newTable() *table {
	return &table{held: map[string]time.Time{}, holders: map[string]string{}, epochs: map[string]int64{}, members: map[string]bool{}}
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

func (s *table) Pending(_ context.Context, slots []int, limit int) (found []outbox.Row, err error) {
	if err := s.lock(); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	for _, r := range s.rows {
		if len(found) < limit && slices.Contains(slots, r.Slot) && !time.Now().Before(s.held[r.Channel+"\n"+r.AggregateID]) {
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

func (s *table) Hold(_ context.Context, _, _ string, _ driver.Lease, row outbox.Row, failure string, wait time.Duration) error {
	if err := s.lock(); err != nil {
		return err
	}
	defer s.mu.Unlock()
	s.held[row.Channel+"\n"+row.AggregateID] = time.Now().Add(wait)
	for n := range s.rows {
		if s.rows[n].Sequence == row.Sequence {
			s.rows[n].Attempts++
			s.rows[n].Failure = failure
		}
	}
	return nil
}

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

func (s *table) Join(_ context.Context, _, holder string, _ time.Duration) (int, error) {
	if err := s.lock(); err != nil {
		return 0, err
	}
	defer s.mu.Unlock()
	s.members[holder] = true
	return len(s.members), nil
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
	for name, of := range s.holders {
		if of == holder && strings.HasPrefix(name, group+"/") {
			kept = append(kept, driver.Lease{Name: strings.TrimPrefix(name, group+"/"), Epoch: s.epochs[name]})
		}
	}
	return kept, nil
}

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
}

func (b *broker) Name() string { return "fake" }
func (b *broker) Features() driver.Features {
	return driver.Features{Durable: true, Ordered: true, Headers: true}
}
func (b *broker) Close(context.Context) error { return nil }
func (b *broker) Subscribe(context.Context, driver.Subscription, driver.Sink) (driver.Consumer, error) {
	return nil, errors.New("it takes no subscription")
}

func (b *broker) Publish(_ context.Context, messages []driver.Message) error {
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

func TestWhatIsCommittedIsSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, s := newBroker(), newTable()
		b, box, _ := running(t, d, s, outbox.Options{})
		users, open := b.Module("users"), &tx{}
		one, two := created.New("u1", payload{"Ada"}), created.New("u1", payload{"Ada L."})
		if err := users.Through(box.In(open)).Publish(t.Context(), one, two); err != nil {
			t.Fatal(err)
		}
		after(time.Minute)
		if len(d.ids()) != 0 {
			t.Fatalf("sent before the commit: %v", d.ids())
		}
		s.commit(open)
		synctest.Wait()
		if got := d.ids(); fmt.Sprint(got) != fmt.Sprint([]string{one.ID(), two.ID()}) {
			t.Fatalf("sent %v", got)
		}
		delivery := driver.Delivery{Message: d.took[0]}
		if e, err := codec.Decode(&delivery); err != nil || e.Type != "users.user.created" || e.AggregateID != "u1" || e.ID != one.ID() || string(e.Payload) != `{"name":"Ada"}` {
			t.Errorf("%+v %v", e, err)
		}
		if status, err := box.Status(t.Context()); err != nil || status.Backlog != 0 || status.Rate == 0 {
			t.Errorf("status %+v: %v", status, err)
		}
	})
}

func TestWhatAModuleMayNotPutIsRefused(t *testing.T) {
	d, s := newBroker(), newTable()
	b := bus(d, tidings.Options{RequireOutbox: true})
	box, err := outbox.New(b, s, &outbox.Options{WithoutRelay: true})
	if err != nil {
		t.Fatal(err)
	}
	users, open := b.Module("users"), &tx{}
	event := created.New("u1", payload{"Ada"})
	if err := users.Through(box.In(open)).Publish(t.Context(), event, foreign.New("l1", payload{})); !errors.Is(err, tidings.ErrForeignEvent) || len(open.rows) != 0 {
		t.Errorf("an event of another module: %v, %d rows", err, len(open.rows))
	}
	if err := users.Through(box.In(nil)).Publish(t.Context(), event); !errors.Is(err, outbox.ErrNoTransaction) {
		t.Errorf("without a transaction: %v", err)
	}
	s.commit(open)
	if err := users.Through(box.In(open)).Publish(t.Context(), event); err == nil {
		t.Error("in a transaction that is over: no error")
	}
	if err := users.Publish(t.Context(), event); !errors.Is(err, tidings.ErrOutboxRequired) || len(d.ids()) != 0 {
		t.Errorf("beside the outbox: %v", err)
	}
	if err := box.Serialize(t.Context(), nil, "users.user.created", "u1"); !errors.Is(err, outbox.ErrNoTransaction) {
		t.Errorf("Serialize without a transaction: %v", err)
	}
	if _, err := outbox.New(bus(memory.New(nil), tidings.Options{}), s, nil); err == nil || !strings.Contains(err.Error(), "sqlite") {
		t.Errorf("over the in-memory driver: %v", err)
	}
	_, err = outbox.New[*tx](nil, nil, &outbox.Options{Workers: 65, Batch: -1, LeaseTime: 1, PollInterval: -1})
	for _, want := range []string{"bus", "store", "Workers", "Batch", "LeaseTime", "PollInterval"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no complaint about %s: %v", want, err)
		}
	}
}

// One that is too large in the middle of a batch holds back what is behind it in
// its aggregate, and nothing else; and no two sends of an aggregate are under way.
func TestATooLargeRowInTheMiddle(t *testing.T) {
	for _, plain := range []bool{false, true} {
		t.Run(fmt.Sprint("plain ", plain), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, s := newBroker(), newTable()
				d.max, d.takes, d.plain = 50, 2*time.Millisecond, plain
				all := &tx{}
				for n := range 30 {
					size := 1
					if n == 13 {
						size = 100
					}
					for k := range 4 {
						all.rows = append(all.rows, row("a.b", fmt.Sprint("k", k), n, max(1, size*(1-min(k, 1)))))
					}
				}
				s.commit(all)
				running(t, d, s, outbox.Options{Batch: 20})
				after(500 * time.Millisecond)
				next := map[string]int{}
				for _, id := range d.ids() {
					aggregate, _, _ := strings.Cut(id, "-")
					if id != fmt.Sprintf("%s-%d", aggregate, next[aggregate]) {
						t.Errorf("%s was sent after %d of its aggregate", id, next[aggregate])
					}
					next[aggregate]++
				}
				if next["k0"] != 13 || next["k1"] != 30 || next["k3"] != 30 || d.overlap != 0 {
					t.Errorf("sent %v, %d overlaps", next, d.overlap)
				}
				d.set(func() { d.max = 0 })
				after(2 * time.Second)
				if got := len(d.ids()); got != 120 {
					t.Errorf("after it was made possible: %d of 120", got)
				}
			})
		})
	}
}

// What lies on a channel that is away waits, and all else flows.
func TestASickChannelStarvesNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, s := newBroker(), newTable()
		d.down["sick.one"] = true
		all := &tx{}
		for n := range 100 {
			all.rows = append(all.rows, row("sick.one", fmt.Sprint("s", n), 0, 1))
		}
		for n := range 20 {
			all.rows = append(all.rows, row("well.one", fmt.Sprint("w", n), 0, 1))
		}
		s.commit(all)
		running(t, d, s, outbox.Options{Batch: 10})
		after(3 * time.Second)
		if got := len(d.ids()); got != 20 {
			t.Errorf("%d of 20 were sent", got)
		}
		d.set(func() { d.down["sick.one"] = false })
		after(time.Minute)
		if got := len(d.ids()); got != 120 {
			t.Errorf("%d of 120 were sent after the channel came back", got)
		}
	})
}

func TestOutagesAreWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, s := newBroker(), newTable()
		d.down[""], s.down = true, true
		running(t, d, s, outbox.Options{})
		after(time.Minute)
		s.mu.Lock()
		s.down = false
		s.mu.Unlock()
		after(10 * time.Second)
		one := &tx{rows: []outbox.Row{row("a.b", "k", 1, 1), row("a.b", "k", 2, 1)}}
		s.commit(one)
		before := d.tries()
		after(time.Minute)
		if tries := d.tries() - before; tries < 10 || tries > 30 {
			t.Errorf("%d tries in a minute without a broker", tries)
		}
		d.set(func() { d.down[""] = false })
		after(5 * time.Second)
		if got := fmt.Sprint(d.ids()); got != "[k-1 k-2]" {
			t.Errorf("sent %s", got)
		}
	})
}

// A relay that has lost its slots while it sent takes nothing out.
func TestAFencedRelayTakesNothingOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, s := newBroker(), newTable()
		d.before = func([]driver.Message) { s.steal() }
		s.commit(&tx{rows: []outbox.Row{row("a.b", "k", 1, 1)}})
		running(t, d, s, outbox.Options{})
		after(time.Second)
		s.mu.Lock()
		left := len(s.rows)
		s.mu.Unlock()
		if left != 1 || len(d.ids()) == 0 {
			t.Errorf("%d rows are left, sent %v", left, d.ids())
		}
	})
}

// What is under way when the bus ends is finished, and not sent again by the next.
func TestTheEndWaitsForTheSend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, s := newBroker(), newTable()
		d.takes = time.Second
		_, _, stop := running(t, d, s, outbox.Options{})
		s.commit(&tx{rows: []outbox.Row{row("a.b", "k", 1, 1)}})
		synctest.Wait()
		stop()
		if len(s.rows) != 0 || len(d.ids()) != 1 || len(s.members) != 0 || len(s.holders) != 0 {
			t.Errorf("%d rows are left, sent %v, members %v, leases %v", len(s.rows), d.ids(), s.members, s.holders)
		}
	})
}

func TestSlotsAreDivided(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTable()
		one, two := newBroker(), newBroker()
		running(t, one, s, outbox.Options{})
		running(t, two, s, outbox.Options{})
		after(5 * time.Second)
		all := &tx{}
		for n := range 200 {
			all.rows = append(all.rows, row("a.b", fmt.Sprint("k", n), 0, 1))
		}
		s.commit(all)
		after(time.Second)
		a, b := len(one.ids()), len(two.ids())
		if a+b != 200 || a < 50 || b < 50 {
			t.Errorf("one sent %d, the other %d", a, b)
		}
	})
}

// Replicas add throughput: each has slots of its own and waits for nobody. See
// docs/peer-defects.md.
func TestPeerDefect16ReplicasAddThroughput(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		took := func(replicas int) time.Duration {
			d, s := newBroker(), newTable()
			d.takes = 20 * time.Millisecond
			var stops []func()
			for range replicas {
				_, _, stop := running(t, d, s, outbox.Options{Workers: 1, Batch: 1, LeaseTime: time.Minute, PollInterval: time.Second})
				stops = append(stops, stop)
			}
			after(3 * time.Minute) // until the slots are divided
			all := &tx{}
			for n := range 400 {
				all.rows = append(all.rows, row("a.b", fmt.Sprint("k", n), 0, 1))
			}
			s.commit(all)
			began := time.Now()
			for len(d.ids()) < 400 && time.Since(began) < time.Hour {
				after(20 * time.Millisecond)
			}
			needed := time.Since(began)
			for _, stop := range stops {
				stop()
			}
			return needed
		}
		one, four := took(1), took(4)
		t.Logf("400 rows of 20 ms: one relay %v, four relays %v", one, four)
		if four > one/2 { // a quarter where the slots happen to have as many rows each
			t.Errorf("one relay needs %v, four need %v", one, four)
		}
	})
}

// Rows that somebody else inserted are wrapped from their columns.
func TestABareRowIsWrapped(t *testing.T) {
	r := outbox.Row{ID: "i1", Channel: "users.user.created", AggregateID: "u1", Payload: []byte(`{"name":"Ada"}`), CreatedAt: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	m, err := r.Message()
	if err != nil {
		t.Fatal(err)
	}
	e, err := codec.Decode(&driver.Delivery{Message: m})
	if err != nil || e.ID != "i1" || e.Type != "users.user.created" || e.AggregateID != "u1" || e.Version != 1 || !e.OccurredAt.Equal(r.CreatedAt) || string(e.Payload) != `{"name":"Ada"}` || e.Bare {
		t.Errorf("%+v %v", e, err)
	}
	for _, whole := range []string{`{"eventType":"users.user.created","payload":{"name":"Ada"}}`, `{"specversion":"1.0","type":"x"}`} {
		r.Payload = []byte(whole)
		if m, err := r.Message(); err != nil || string(m.Body) != whole {
			t.Errorf("%s became %s: %v", whole, m.Body, err)
		}
	}
	r.Payload = []byte(`["no object"]`)
	if _, err := r.Message(); err == nil {
		t.Error("a payload that is no object was wrapped")
	}
}

func TestSlots(t *testing.T) {
	// The number is stored: it never changes.
	if got := outbox.SlotOf("a.b", "k"); got != 51 {
		t.Errorf("the slot of a.b k is %d", got)
	}
}
