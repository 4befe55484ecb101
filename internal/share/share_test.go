package share

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidings-go/tidings/driver"
)

// table is [driver.Leases] in memory, by the clock of the test.
type table struct {
	mu      sync.Mutex
	members map[string]member
	leases  map[string]*entry
	down    bool
	writing time.Time     // since when a transaction keeps all others out
	ended   chan struct{} // that transaction has ended
}

type member struct {
	driver.Member
	until time.Time
}

type entry struct {
	holder string
	epoch  int64
	until  time.Time
}

func newTable() *table {
	return &table{members: make(map[string]member), leases: make(map[string]*entry)}
}

var errDown = errors.New("the table is down")

// enter waits until nobody keeps others out.
func (l *table) enter(ctx context.Context) error {
	l.mu.Lock()
	ended := l.ended
	l.mu.Unlock()
	if ended != nil {
		select {
		case <-ended:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	l.mu.Lock()
	if l.down {
		l.mu.Unlock()
		return errDown
	}
	return nil
}

func (l *table) Join(ctx context.Context, _ string, m driver.Member, ttl time.Duration) (alive []driver.Member, err error) {
	if err := l.enter(ctx); err != nil {
		return nil, err
	}
	defer l.mu.Unlock()
	l.members[m.Holder] = member{m, time.Now().Add(ttl)}
	for _, other := range l.members {
		if other.until.After(time.Now()) {
			alive = append(alive, other.Member)
		}
	}
	return alive, nil
}

func (l *table) Leave(ctx context.Context, _, holder string) error {
	if err := l.enter(ctx); err != nil {
		return err
	}
	defer l.mu.Unlock()
	delete(l.members, holder)
	for _, e := range l.leases {
		if e.holder == holder {
			e.holder = ""
		}
	}
	return nil
}

func (l *table) Acquire(ctx context.Context, _, holder string, names []string, limit int, ttl time.Duration) (taken []driver.Lease, err error) {
	if err := l.enter(ctx); err != nil {
		return nil, err
	}
	defer l.mu.Unlock()
	for _, name := range names {
		e := l.leases[name]
		if e == nil {
			e = &entry{}
			l.leases[name] = e
		}
		if len(taken) < limit && (e.holder == "" || !e.until.After(time.Now())) {
			e.holder, e.until = holder, time.Now().Add(ttl)
			e.epoch++
			taken = append(taken, driver.Lease{Name: name, Epoch: e.epoch})
		}
	}
	return taken, nil
}

func (l *table) Renew(ctx context.Context, _, holder string, ttl time.Duration) (kept []driver.Lease, err error) {
	if err := l.enter(ctx); err != nil {
		return nil, err
	}
	defer l.mu.Unlock()
	for name, e := range l.leases {
		if e.holder == holder && e.until.After(time.Now()) {
			e.until = time.Now().Add(ttl)
			kept = append(kept, driver.Lease{Name: name, Epoch: e.epoch})
		}
	}
	return kept, nil
}

func (l *table) Release(ctx context.Context, _, holder string, names []string) error {
	if err := l.enter(ctx); err != nil {
		return err
	}
	defer l.mu.Unlock()
	for _, name := range names {
		if e := l.leases[name]; e != nil && e.holder == holder {
			e.holder = ""
		}
	}
	return nil
}

func (l *table) KeptSince() time.Time { return time.Time{} }

// sole is a table whose writers keep each other out, as one process sees it.
type sole struct{ *table }

func (s sole) KeptSince() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.writing
}

// write keeps everybody out; the function that it returns ends that, and prolongs
// what its holder had when it began, or not.
func (s sole) write(holder string) (end func(prolong bool)) {
	began, ended := time.Now(), make(chan struct{})
	s.mu.Lock()
	s.writing, s.ended = began, ended
	s.mu.Unlock()
	return func(prolong bool) {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, e := range s.leases {
			if prolong && e.holder == holder && e.until.After(began) {
				e.until = time.Now().Add(ttl)
			}
		}
		s.writing, s.ended = time.Time{}, nil
		close(ended)
	}
}

func (l *table) of(holder string) (names []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name, e := range l.leases {
		if e.holder == holder && e.until.After(time.Now()) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// instance is one process with a share.
type instance struct {
	*Share

	begin chan struct{} // when it is not nil, Adopt returns with its end

	mu    sync.Mutex
	busy  map[string]chan struct{}
	given []string
	lost  []string
}

const ttl = time.Second

var eight = map[string][]string{"eight": {"0", "1", "2", "3", "4", "5", "6", "7"}}

func run(t *testing.T, leases driver.Leases, holder string) *instance {
	t.Helper()
	i, stop := start(leases, holder, eight)
	t.Cleanup(stop)
	return i
}

func start(leases driver.Leases, holder string, parts map[string][]string) (i *instance, stop func()) {
	i = &instance{busy: make(map[string]chan struct{})}
	i.Share = New(Options{
		Leases: leases, Group: "group", Holder: holder, Names: parts, TTL: ttl,
		Adopt: func(context.Context, []driver.Lease) error {
			i.mu.Lock()
			begin := i.begin
			i.mu.Unlock()
			if begin != nil {
				<-begin
			}
			return nil
		},
		Drain: func(lease driver.Lease) {
			i.mu.Lock()
			busy := i.busy[lease.Name]
			i.mu.Unlock()
			if busy != nil {
				<-busy
			}
		},
		GiveUp: func(leases []driver.Lease) {
			i.mu.Lock()
			defer i.mu.Unlock()
			i.given = append(i.given, names(leases)...)
		},
		Lost: func(leases []driver.Lease, _ string) {
			i.mu.Lock()
			defer i.mu.Unlock()
			i.lost = append(i.lost, names(leases)...)
		},
		Joined: func() {}, Failed: func(error) {},
	})
	ctx, cancel := context.WithCancel(context.Background())
	var loops sync.WaitGroup
	loops.Go(func() { i.Divide(ctx) })
	loops.Go(func() { i.Renew(ctx) })
	return i, func() { cancel(); loops.Wait() }
}

func names(leases []driver.Lease) (names []string) {
	for _, lease := range leases {
		names = append(names, lease.Name)
	}
	return names
}

// after lets a time pass in which everything that is due happens.
func after(d time.Duration) {
	time.Sleep(d) //nolint:forbidigo // inside synctest: no real time
	synctest.Wait()
}

// A part whose handler is slow keeps no other from its new owner, and its instance
// is alive for the others meanwhile.
func TestABusyPartKeepsNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		leases := newTable()
		first := run(t, leases, "first")
		after(2 * ttl)
		free := make(chan struct{})
		first.mu.Lock()
		first.busy["5"], first.busy["7"] = free, free
		first.mu.Unlock()
		run(t, leases, "second")
		after(2 * ttl)
		if got := fmt.Sprint(leases.of("second")); got != "[4 6]" {
			t.Errorf("while two parts are busy the second has %s", got)
		}
		after(20 * ttl)
		if got := fmt.Sprint(leases.of("first")); got != "[0 1 2 3 5 7]" {
			t.Errorf("twenty lease times later the first has %s", got)
		}
		close(free)
		after(2 * ttl)
		if got := fmt.Sprint(leases.of("second")); got != "[4 5 6 7]" || len(first.lost) != 0 || len(first.given) != 4 {
			t.Errorf("the second has %s, the first gave up %v and lost %v", got, first.given, first.lost)
		}
	})
}

// What was lost while the table did not answer is released and taken again, with a
// new epoch.
func TestWhatWasLostIsTakenAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		leases := newTable()
		first := run(t, leases, "first")
		after(2 * ttl)
		before := first.Owned()
		leases.mu.Lock()
		leases.down = true
		leases.mu.Unlock()
		after(ttl)
		if len(first.lost) != 8 {
			t.Fatalf("lost %v", first.lost)
		}
		leases.mu.Lock()
		leases.down = false
		for _, e := range leases.leases {
			e.until = time.Now().Add(time.Hour) // the answer to the last renewal was lost
		}
		leases.mu.Unlock()
		after(2 * ttl)
		now := first.Owned()
		if len(now) != 8 || now[0].Epoch <= before[0].Epoch {
			t.Errorf("before %v, after %v", before, now)
		}
	})
}

// What was lost while it began is not begun for good.
func TestWhatIsLostWhileItBeginsEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		leases := newTable()
		first := run(t, leases, "first")
		after(2 * ttl)
		begin := make(chan struct{})
		first.mu.Lock()
		first.begin = begin
		first.mu.Unlock()
		taken := first.Owned()[0]
		first.Lose([]driver.Lease{taken}, "the test says so")
		after(2 * ttl) // it takes it again, and begins
		again := first.Owned()
		at := slices.IndexFunc(again, func(l driver.Lease) bool { return l.Name == taken.Name })
		if at < 0 || again[at].Epoch <= taken.Epoch {
			t.Fatalf("it has %v", again)
		}
		first.Lose(again[at:at+1], "the test says so again")
		before := len(first.lost)
		first.mu.Lock()
		first.begin = nil
		first.mu.Unlock()
		close(begin)
		after(ttl / 10)
		if len(first.lost) != before+1 || first.lost[before] != taken.Name {
			t.Errorf("lost %v, %d of them before it had begun", first.lost, before)
		}
	})
}

// While this process alone can write, its leases can go to nobody, so they are not
// over: however long that takes.
func TestASoleWriterKeepsItsLeases(t *testing.T) {
	for name, prolonged := range map[string]bool{"renewed at its end": true, "not renewed": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				leases := sole{newTable()}
				first := run(t, leases, "first")
				after(2 * ttl)
				before := first.Owned()
				end := leases.write("first")
				after(10 * ttl)
				if len(first.lost) != 0 {
					t.Errorf("lost %v while it writes", first.lost)
				}
				end(prolonged)
				after(2 * ttl)
				now := first.Owned()
				if kept := fmt.Sprint(now) == fmt.Sprint(before); kept != prolonged || (len(first.lost) == 0) != prolonged {
					t.Errorf("before %v, after %v, lost %v", before, now, first.lost)
				}
			})
		})
	}
}

// Another writer is no reason to believe in a lease.
func TestWhoWaitsForAWriterLosesItsLeases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		leases := sole{newTable()}
		first := run(t, leases.table, "first")
		after(2 * ttl)
		end := leases.write("another")
		after(ttl)
		if len(first.lost) != 8 {
			t.Errorf("lost %v", first.lost)
		}
		end(true)
		after(2 * ttl)
		if len(first.Owned()) != 8 {
			t.Errorf("it has %v", first.Owned())
		}
	})
}
